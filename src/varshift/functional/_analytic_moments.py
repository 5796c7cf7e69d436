"""Per-channel moments behind convolutions and pools, averaged over the positions of a map with borders."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ._kalman_state import KalmanState
from ._kalman_transitions import conv_moments, full_precision


def channel_moments(batches: Tensor | Iterable) -> KalmanState:
    """Mean and variance of each channel of a data set, over samples and positions, pooled in float64.

    Args:
        batches: A tensor of shape (N, C, ...), or an iterable of such tensors or of tuples that begin with
            one, as a loader gives.

    Returns:
        Mean and biased variance of shape (C,).

    Raises:
        ValueError: If there is no sample.

    Example:
        >>> import torch
        >>> from varshift.functional import channel_moments
        >>> channel_moments(torch.tensor([[0.0, 1.0], [2.0, 1.0]])).var.tolist()
        [1.0, 0.0]
    """
    number, mean, squares = 0, torch.zeros(()), torch.zeros(())
    for batch in [batches] if isinstance(batches, Tensor) else batches:
        x = batch[0] if isinstance(batch, (tuple, list)) else batch
        rows = x.detach().to(torch.float64).transpose(0, 1).flatten(1)
        if not rows.numel():
            continue
        own, count = rows.mean(1), rows.shape[1]
        gap, total = own - mean.to(own), number + count
        squares = squares.to(own) + (rows - own[:, None]).square().sum(1) + gap**2 * (number * count / total)
        mean, number = mean.to(own) + gap * (count / total), total
    if not number:
        raise ValueError("batches is empty: at least one sample is needed.")
    return KalmanState(mean, squares / number)


def padded_conv_moments(
    state: KalmanState,
    weight: Tensor,
    bias: Tensor | None,
    size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
    groups: int = 1,
) -> KalmanState:
    r"""Moments behind a convolution with zeros around the map, averaged over all positions.

    With ``f_k`` the share of positions ``u`` at which tap ``k`` lies inside the map:

    .. math::

        \mu'_o = b_o + \sum_{ck} W_{ock} m_c f_k, \qquad
        v'_o = \sum_{ck} W_{ock}^2 v_c f_k
        + \operatorname{Var}_u \sum_{ck} W_{ock} m_c [k \text{ inside at } u]

    Elements are taken as uncorrelated and alike at all positions. Without padding this is `conv_moments`.

    Shape:
        state of shape (C_in,); weight of shape ``(C_out, C_in / groups, *kernel)``; result (C_out,).

    Args:
        state: Moments of the convolution's input.
        weight: Its weight.
        bias: Its bias.
        size: Extents of the input map.
        stride: Step along each axis.
        padding: Number of zeros in front and behind, along each axis.
        dilation: Distance of taps along each axis.
        groups: Number of groups.

    Raises:
        ValueError: If the channels do not fit the weight.

    Example:
        >>> import torch
        >>> from varshift.functional import KalmanState, padded_conv_moments
        >>> state, weight = KalmanState(torch.ones(1), torch.zeros(1)), torch.ones(1, 1, 3)
        >>> mean, var = padded_conv_moments(state, weight, None, [4], [1], [(1, 1)], [1])
        >>> mean.item(), var.item()  # of a map (2, 3, 3, 2)
        (2.5, 0.25)
    """
    if not any(before or after for before, after in padding):
        return conv_moments(state, weight, bias, groups, negative_slope=1.0)
    inside = []
    for extent, kernel, step, (before, after), apart in zip(
        size, weight.shape[2:], stride, padding, dilation, strict=True
    ):
        number = (extent + before + after - apart * (kernel - 1) - 1) // step + 1
        position = torch.arange(number, device=weight.device) * step - before
        tap = torch.arange(kernel, device=weight.device) * apart
        where = tap[:, None] + position
        inside.append((where >= 0) & (where < extent))
    return _masked_moments(state, weight, bias, inside, groups)


def transposed_conv_moments(
    state: KalmanState,
    weight: Tensor,
    bias: Tensor | None,
    size: Sequence[int],
    after: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int = 1,
) -> KalmanState:
    """Moments behind a transposed convolution, averaged over all positions, which differ in their taps.

    As `padded_conv_moments`; a tap counts at the positions at which it meets an input element.

    Shape:
        state of shape (C_in,); weight of shape ``(C_in, C_out / groups, *kernel)``; result (C_out,).

    Args:
        state: Moments of the input.
        weight: The layer's weight.
        bias: Its bias.
        size: Extents of the input map.
        after: Extents of the output map.
        stride: Step along each axis.
        padding: Number of elements that are cut off on either side, along each axis.
        dilation: Distance of taps along each axis.
        groups: Number of groups.

    Raises:
        ValueError: If the channels do not fit the weight.

    Example:
        >>> import torch
        >>> from varshift.functional import KalmanState, transposed_conv_moments
        >>> state, weight = KalmanState(torch.ones(1), torch.zeros(1)), torch.ones(1, 1, 2)
        >>> mean, var = transposed_conv_moments(state, weight, None, [3], [4], [1], [0], [1])
        >>> mean.item(), var.item()  # of a map (1, 2, 2, 1)
        (1.5, 0.25)
    """
    inside = []
    for extent, result, kernel, step, cut, apart in zip(
        size, after, weight.shape[2:], stride, padding, dilation, strict=True
    ):
        position = torch.arange(result, device=weight.device) + cut
        reach = position - (torch.arange(kernel, device=weight.device) * apart)[:, None]
        inside.append((reach >= 0) & (reach % step == 0) & (reach < extent * step))
    turned = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    return _masked_moments(state, turned, bias, inside, groups)


def averaged_moments(state: KalmanState, cells: float | Tensor) -> KalmanState:
    """Moments of the mean of several uncorrelated elements: the variance is divided by their number.

    Args:
        state: Moments of an element.
        cells: How many are averaged.

    Example:
        >>> import torch
        >>> from varshift.functional import KalmanState
        >>> state = KalmanState(torch.zeros(1), torch.ones(1))
        >>> averaged_moments(state, 4).var.item()
        0.25
    """
    return KalmanState(state.mean, state.var / cells)


def maximum_moments(state: KalmanState, cells: int) -> KalmanState:
    r"""Moments of the largest of several independent Gaussians that are alike.

    .. math:: \mu' = m + s E_n, \qquad v' = s^2 V_n

    with the mean and variance of the largest of ``n`` standard Gaussians, by quadrature.

    Args:
        state: Moments of an element.
        cells: How many are compared.

    Example:
        >>> import torch
        >>> from varshift.functional import KalmanState
        >>> state = KalmanState(torch.zeros(1), torch.ones(1))
        >>> round(maximum_moments(state, 2).mean.item(), 3)  # 1 / sqrt(pi)
        0.564
    """
    grid = torch.linspace(-12, 12, 481, device=state.mean.device, dtype=torch.float64)  # spectral accuracy
    share = torch.exp(-0.5 * grid * grid) * torch.special.ndtr(grid) ** (cells - 1)
    share = share / share.sum()
    largest = (share * grid).sum()
    spread = (share * (grid - largest).square()).sum()
    std = state.var.clamp(min=0).sqrt()
    return KalmanState(state.mean + std * largest.to(std.dtype), state.var * spread.to(std.dtype))


def _masked_moments(
    state: KalmanState, weight: Tensor, bias: Tensor | None, inside: list[Tensor], groups: int
) -> KalmanState:
    """Moments of sums over taps of which each axis says, taps by positions, where they are inside."""
    channels = weight.shape[1] * groups
    if state.mean.shape[-1] != channels:
        raise ValueError(
            f"state has {state.mean.shape[-1]} channels: the weight takes {channels}; "
            "pass the moments of this layer's input."
        )
    with full_precision(state.mean):
        dtype, kernel = state.mean.dtype, weight.shape[2:]
        blocks = weight.to(dtype).flatten(2).unflatten(0, (groups, -1))

        def over_channels(rows: Tensor, blocks: Tensor) -> Tensor:
            return torch.einsum("gock,gc->gok", blocks, rows.unflatten(-1, (groups, -1))).flatten(0, 1)

        means = over_channels(state.mean, blocks)
        squares = over_channels(state.var, blocks.square())
        masks = [mask.to(dtype) for mask in inside]
        shares = torch.ones((), dtype=dtype, device=means.device)
        for mask in masks:
            shares = (shares[..., None] * mask.mean(1)).flatten()
        first = means @ shares
        # a' V a with V the share of positions at which both of two taps are inside, one axis after another
        paired = means.unflatten(1, kernel)
        for axis, mask in enumerate(masks, 1):
            pairs = mask @ mask.T / mask.shape[1]
            paired = (paired.movedim(axis, -1) @ pairs).movedim(-1, axis)
        between = (paired.flatten(1) * means).sum(1) - first.square()
        var = squares @ shares + between.clamp(min=0)
        return KalmanState(first if bias is None else first + bias.to(dtype), var)


def pooled_cells(before: Sequence[int], after: Sequence[int]) -> float:
    """The number of elements that an adaptive average divides the variance by, from the maps' extents.

    Example:
        >>> pooled_cells((8, 8), (2, 2))
        16.0
    """
    inverse = 1.0
    for extent, bins in zip(before, after, strict=True):
        widths = [math.ceil((i + 1) * extent / bins) - i * extent // bins for i in range(bins)]
        inverse *= sum(1 / width for width in widths) / bins
    return 1 / inverse
