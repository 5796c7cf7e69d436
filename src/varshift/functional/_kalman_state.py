"""The moments that Kalman norms hand from layer to layer, and what residual joins do to them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn import functional as F

from varshift._arguments import count


class KalmanState(NamedTuple):
    """Mean and variance of a signal as a Kalman norm estimates them; a tuple of two tensors.

    Attributes:
        mean: Of shape (splits, C) from a batch Kalman norm and (N, G) from a group Kalman norm.
        var: Biased variance, of the same shape.

    Example:
        >>> import torch
        >>> from varshift.functional import KalmanState
        >>> KalmanState(torch.zeros(1, 3), torch.ones(1, 3)).var.tolist()
        [[1.0, 1.0, 1.0]]
    """

    mean: torch.Tensor
    var: torch.Tensor


def add_kalman_states(*states: KalmanState) -> KalmanState:
    r"""Moments of a sum, as behind a residual join: means add, variances add.

    .. math:: (\mu, v) = \left(\sum_i \mu_i, \sum_i v_i\right)

    Adding variances takes the summands as uncorrelated, as the released code does.

    Args:
        states: At least one state; their shapes must broadcast.

    Raises:
        ValueError: If there is no state, or the shapes do not fit.

    Reference:
        G. Wang et al., "Kalman Normalization", NeurIPS 2018, as in the released code.

    Example:
        >>> import torch
        >>> from varshift.functional import KalmanState, add_kalman_states
        >>> state = KalmanState(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 4.0]]))
        >>> add_kalman_states(state, state).var.tolist()
        [[2.0, 8.0]]
    """
    if not states:
        raise ValueError("states is empty: at least one state is needed.")
    mean, var = states[0]
    for other in states[1:]:
        if other.mean.shape[-1] != mean.shape[-1]:
            raise ValueError(
                f"states have {mean.shape[-1]} and {other.mean.shape[-1]} channels: they must be as many; "
                "pad the smaller one as its features are padded."
            )
        mean, var = mean + other.mean, var + other.var
    return KalmanState(mean, var)


def pad_kalman_state(state: KalmanState, before: int, after: int) -> KalmanState:
    """Moments of features that are padded with channels of zeros: both moments of the new channels are 0.

    The shortcut of a down-sampling block in the released code pads its pooled features with half as many
    channels on either side; the pooling's smaller variance is not accounted for there, and not here. The
    released code pads a vector of all splits at its two ends, which puts statistics at the wrong channels
    and splits as soon as there are two; here every split is padded by itself.

    Args:
        state: The state of a batch Kalman norm, of shape (splits, C).
        before: Number of zero channels in front, at least 0.
        after: Number of zero channels behind, at least 0.

    Raises:
        ValueError: If a number is negative.

    Example:
        >>> import torch
        >>> from varshift.functional import KalmanState, pad_kalman_state
        >>> state = KalmanState(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.ones(2, 2))
        >>> pad_kalman_state(state, 1, 1).mean.tolist()
        [[0.0, 1.0, 2.0, 0.0], [0.0, 3.0, 4.0, 0.0]]
    """
    pad = (count("before", before, 0), count("after", after, 0))
    return KalmanState(F.pad(state.mean, pad), F.pad(state.var, pad))
