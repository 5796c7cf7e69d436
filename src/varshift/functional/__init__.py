"""The functions behind the layers of `varshift.nn`; a layer and its twin share one kernel."""

from __future__ import annotations

from ._activation_moments import ActivationMoments as ActivationMoments
from ._activation_moments import activation_gain as activation_gain
from ._activation_moments import activation_moments as activation_moments
from ._analytic_moments import averaged_moments as averaged_moments
from ._analytic_moments import channel_moments as channel_moments
from ._analytic_moments import maximum_moments as maximum_moments
from ._analytic_moments import padded_conv_moments as padded_conv_moments
from ._analytic_moments import pooled_cells as pooled_cells
from ._analytic_moments import transposed_conv_moments as transposed_conv_moments
from ._analytic_norm import analytic_norm as analytic_norm
from ._batch_renorm import batch_renorm as batch_renorm
from ._binary_sign import binary_sign as binary_sign
from ._dropout import dropout as dropout
from ._dropout import gaussian_dropout as gaussian_dropout
from ._dropout import uniform_dropout as uniform_dropout
from ._filter_response_norm import filter_response_norm as filter_response_norm
from ._filter_response_norm import thresholded_linear_unit as thresholded_linear_unit
from ._gaussian_moments import elementwise_moments as elementwise_moments
from ._gaussian_moments import exponential_moments as exponential_moments
from ._gaussian_moments import gelu_moments as gelu_moments
from ._gaussian_moments import piecewise_moments as piecewise_moments
from ._group_kalman_norm import group_conv_moments as group_conv_moments
from ._group_kalman_norm import group_kalman_norm as group_kalman_norm
from ._kalman_norm import batch_kalman_norm as batch_kalman_norm
from ._kalman_norm import fuse_kalman_states as fuse_kalman_states
from ._kalman_state import KalmanState as KalmanState
from ._kalman_state import add_kalman_states as add_kalman_states
from ._kalman_state import pad_kalman_state as pad_kalman_state
from ._kalman_transitions import conv_moments as conv_moments
from ._kalman_transitions import conv_sample_moments as conv_sample_moments
from ._kalman_transitions import linear_moments as linear_moments
from ._kalman_transitions import rectified_moments as rectified_moments
from ._norm_free_betas import norm_free_betas as norm_free_betas
from ._react import shifted_prelu as shifted_prelu
from ._react import shifted_sign as shifted_sign
from ._scaled_std import binary_weight as binary_weight
from ._scaled_std import scaled_std_weight as scaled_std_weight
