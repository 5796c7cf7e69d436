"""Group normalisation with statistics that are fused with a prediction, sample by sample."""

from __future__ import annotations

import torch
from torch.nn.functional import group_norm

from varshift._arguments import between, count

from ._kalman_norm import GUARD, fuse_kalman_states
from ._kalman_state import KalmanState
from ._kalman_transitions import conv_moments
from ._map_statistics import map_affine, map_moments, maps_are_worth_it


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
        x of shape ``(N, C, *)``; prediction and state of shape (N, num_groups).

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
    if x.numel() == 0:
        zero = x.new_zeros(x.shape[0], num_groups, dtype=precision)
        return group_norm(x, num_groups, weight, bias, eps), KalmanState(zero, zero.clone())
    by_maps = maps_are_worth_it(x)
    if by_maps:
        mean, var = (part.unflatten(1, (num_groups, -1)) for part in map_moments(x))
        between_maps, mean = torch.var_mean(mean, 2, correction=0)
        observed = KalmanState(mean, var.mean(2) + between_maps)
    else:
        parts = x.unflatten(1, (num_groups, -1)).to(precision)
        var, mean = torch.var_mean(parts, tuple(range(2, parts.dim())), correction=0)
        observed = KalmanState(mean, var)
    state = observed
    if prediction is not None:
        _check_prediction(prediction, x.shape[0], num_groups)
        prediction = KalmanState(*(part.to(precision) for part in prediction))
        state = fuse_kalman_states(prediction, observed, prediction_weight, guard)
    size = x.shape[1] // num_groups
    scale, mean = (part.repeat_interleave(size, 1) for part in (torch.rsqrt(state.var + eps), state.mean))
    if weight is not None:
        scale = scale * weight.to(precision)
    if by_maps:
        # About the observed mean, as a constant, so that nothing cancels beside a large one.
        centre = observed.mean.detach().repeat_interleave(size, 1)
        shift = (centre - mean) * scale
        return map_affine(x, centre, scale, shift if bias is None else shift + bias.to(precision)), state
    tail = [1] * (x.dim() - 2)
    y = (x.to(precision) - mean.reshape(*mean.shape, *tail)) * scale.reshape(*scale.shape, *tail)
    if bias is not None:
        y = y + bias.to(precision).reshape(-1, *tail)
    return y.to(x.dtype), state


def _check_prediction(prediction: KalmanState, samples: int, num_groups: int) -> None:
    for name, part in zip(("mean", "var"), prediction, strict=True):
        if tuple(part.shape) not in ((num_groups,), (1, num_groups), (samples, num_groups)):
            raise ValueError(
                f"prediction.{name} of shape {tuple(part.shape)} must have shape ({samples}, {num_groups}), "
                "one row per sample and one column per group."
            )
