"""The papers' parts of an optimiser's step; they work beside any torch optimiser."""

from __future__ import annotations

from varshift.optim._adaptive_gradient_clipping import AdaptiveGradientClipping as AdaptiveGradientClipping
from varshift.optim._unit_clipping import adaptive_clip_grad_ as adaptive_clip_grad_
