"""Group normalisation with statistics that are fused with a prediction, sample by sample."""

from __future__ import annotations

import torch
from torch.nn.functional import group_norm

from varshift._arguments import between, count

from ._kalman_norm import GUARD, fuse_kalman_states
from ._kalman_state import KalmanState
from ._kalman_transitions import conv_moments


def group_conv_moments(
    state: KalmanState,
    num_groups: int,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    groups: int = 1,
    negative_slope: float = 0.0,
) -> KalmanState:
    r"""Moments of the groups behind a (leaky) ReLU and a convolution, from moments of the groups before it.

    Every input channel is given its group's moments; the output channels' moments are those of
    `conv_moments`, and a group of them has the moments of their union:

    .. math:: \mu'_g = \langle \mu'_o \rangle_g, \qquad
        v'_g = \langle v'_o \rangle_g + \langle \mu'^2_o \rangle_g - \langle \mu'_o \rangle_g^2

    RECONSTRUCTED: the paper is known to equip group norm, but its definition could not be read and no code
    of the authors is public.

    Args:
        state: Moments of shape (N, G_in).
        num_groups: Number of groups of the output.
        weight: The convolution's weight.
        bias: Its bias.
        groups: Its own groups.
        negative_slope: Slope of the activation's negative side; 1 for no activation.

    Returns:
        Moments of shape (N, num_groups).

    Raises:
        ValueError: If groups do not divide channels.

    Example:
        >>> import torch
        >>> from varshift.functional import KalmanState, group_conv_moments
        >>> state = KalmanState(torch.zeros(5, 2), torch.ones(5, 2))
        >>> group_conv_moments(state, 3, torch.randn(6, 4, 3, 3)).mean.shape
        torch.Size([5, 3])
    """
    num_groups = count("num_groups", num_groups, 1)
    channels, before = weight.shape[1] * groups, state.mean.shape[-1]
    if channels % before:
        raise ValueError(
            f"state has {before} groups: they must divide the {channels} channels that the weight takes."
        )
    if weight.shape[0] % num_groups:
        raise ValueError(f"num_groups={num_groups} must divide the {weight.shape[0]} channels of the weight.")
    spread = KalmanState(*(part.repeat_interleave(channels // before, -1) for part in state))
    mean, var = (
        part.unflatten(-1, (num_groups, -1))
        for part in conv_moments(spread, weight, bias, groups, negative_slope)
    )
    between_channels, centre = torch.var_mean(mean, -1, correction=0)
    return KalmanState(centre, var.mean(-1) + between_channels)


def group_kalman_norm(
    x: torch.Tensor,
    num_groups: int,
    prediction: KalmanState | None = None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    prediction_weight: float | torch.Tensor = 0.9,
    eps: float = 1e-5,
    guard: float = GUARD,
) -> tuple[torch.Tensor, KalmanState]:
    r"""Group normalisation with statistics that are fused with a prediction.

    .. math:: y = \gamma\, (x - \mu_{ng}) / \sqrt{v_{ng} + \epsilon} + \beta

    with the moments of each sample and group, fused as `fuse_kalman_states` says. Without a prediction this
    is group norm. Samples do not depend on each other, and training and evaluation are the same.

    RECONSTRUCTED: see `group_conv_moments`.

    Shape:
        x of shape (N, C, *); prediction and state of shape (N, num_groups).

    Args:
        x: The signal.
        num_groups: Number of groups of channels.
        prediction: Predicted moments of the groups; None for plain group norm.
        weight: ``gamma``, of shape (C,).
        bias: ``beta``, of shape (C,).
        prediction_weight: Weight of the prediction in [0, 1].
        eps: Added to the variance.
        guard: See `fuse_kalman_states`.

    Returns:
        The normalised signal and the moments that it was normalised with.

    Raises:
        ValueError: If the groups do not divide the channels, or the prediction does not fit.

    Example:
        >>> import torch
        >>> from varshift.functional import group_kalman_norm
        >>> y, state = group_kalman_norm(torch.randn(2, 6, 4, 4), num_groups=3)
        >>> state.mean.shape
        torch.Size([2, 3])
    """
    num_groups = count("num_groups", num_groups, 1)
    if x.dim() < 2:
        raise ValueError(f"x of shape {tuple(x.shape)} must have at least the axes (N, C).")
    if x.shape[1] % num_groups:
        raise ValueError(f"num_groups={num_groups} must divide the {x.shape[1]} channels.")
    if isinstance(prediction_weight, (int, float)):
        prediction_weight = between("prediction_weight", prediction_weight, 0, 1)
    precision = torch.promote_types(x.dtype, torch.float32)
    parts = x.unflatten(1, (num_groups, -1)).to(precision)
    if x.numel() == 0:
        state = KalmanState(*(parts.new_empty(x.shape[0], num_groups) for _ in range(2)))
        return group_norm(x, num_groups, weight, bias, eps), state
    var, mean = torch.var_mean(parts, tuple(range(2, parts.dim())), correction=0)
    state = KalmanState(mean, var)
    if prediction is not None:
        for name, part in zip(("mean", "var"), prediction, strict=True):
            if (
                part.shape[-1] != num_groups
                or part.dim() > 2
                or (part.dim() == 2 and part.shape[0] not in (1, x.shape[0]))
            ):
                raise ValueError(
                    f"prediction.{name} of shape {tuple(part.shape)} must have shape "
                    f"({x.shape[0]}, {num_groups}), one row per sample and one column per group."
                )
        prediction = KalmanState(*(part.to(precision) for part in prediction))
        state = fuse_kalman_states(prediction, state, prediction_weight, guard)
    tail = [1] * (parts.dim() - 3)
    scale = torch.rsqrt(state.var + eps)[..., None]
    if weight is not None:
        scale = scale * weight.to(precision).unflatten(0, (num_groups, -1))
    y = (parts - state.mean.reshape(*state.mean.shape, 1, *tail)) * scale.reshape(*scale.shape, *tail)
    if bias is not None:
        y = y + bias.to(precision).reshape(num_groups, -1, *tail)
    return y.to(x.dtype).flatten(1, 2), state
