"""The papers' parts of an optimiser's step; they work beside any torch optimiser."""

from __future__ import annotations

from varshift.optim._adaptive_gradient_clipping import AdaptiveGradientClipping as AdaptiveGradientClipping
from varshift.optim._batch_norm_preconditioner import BatchNormPreconditioner as BatchNormPreconditioner
from varshift.optim._filters import ScaleInvariantWeight as ScaleInvariantWeight
from varshift.optim._norm_order import find_followed_by_norm as find_followed_by_norm
from varshift.optim._precondition import precondition_gradients as precondition_gradients
from varshift.optim._scale_invariance import find_scale_invariant as find_scale_invariant
from varshift.optim._unit_clipping import adaptive_clip_grad_ as adaptive_clip_grad_
from varshift.optim._weight_rescaling import WeightRescaling as WeightRescaling
