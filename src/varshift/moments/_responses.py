"""How the profile of a result follows from the profiles of what an operation reads."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._call import weight_key
from ._profile import Profile, joined

# From the profiles of the operands to that of the result, up to a factor per channel that is calibrated.
Response = Callable[[Sequence[Profile]], Profile]
Function = Callable[[Tensor], Tensor]

_NODES, _ORDERS = 32, 10  # of the expansion of an elementwise function in Hermite polynomials
_TINY = 1e-20


def unchanged(profiles: Sequence[Profile]) -> Profile:
    """The first operand decides, channel by channel."""
    return profiles[0]


def mixing(first: Tensor, second: Tensor, groups: int) -> Response:
    """A linear layer.

    Args:
        first: Sums of weights over the kernel, of shape ``(groups, outputs, inputs)``.
        second: Sums of squared weights, likewise.
        groups: Number of groups.
    """

    def times(matrix: Tensor, x: Tensor) -> Tensor:
        rows = x.to(matrix.dtype).flatten(0, -2)
        if groups == 1:
            found = rows @ matrix[0].T
        else:
            rows = rows.reshape(len(rows), groups, -1).transpose(0, 1)
            found = torch.bmm(rows, matrix.transpose(1, 2)).transpose(0, 1).flatten(1)
        return found.double().reshape(*x.shape[:-1], -1)

    def respond(profiles: Sequence[Profile]) -> Profile:
        x = profiles[0]
        return Profile(times(first, x.mean), times(second, x.variances))

    return respond


def weights(
    named: Mapping[str, Any], transposed: bool, before: Sequence[int], after: Sequence[int]
) -> tuple[Tensor, Tensor, int] | None:
    """Sums of the weights of a convolution or matrix over its kernel, and of their squares.

    A tap counts for as many positions as it lies inside the input.

    Args:
        named: The operands by name.
        transposed: Whether it is a transposed convolution.
        before: Shape of the input.
        after: Shape of the result.
    """
    name = weight_key(named)
    weight = named.get(name or "")
    if weight is None or weight.dim() < 2 or not weight.is_floating_point():
        return None
    weight = weight.detach().float()
    groups = int(named.get("groups", 1) or 1) if weight.dim() > 2 else 1
    if weight.dim() == 2:
        if len(before) != 2:
            return None
        matrix = weight if name == "weight" else weight.T
        return matrix.cpu()[None], matrix.square().cpu()[None], 1
    inside = [] if transposed else _inside(named, weight.shape[2:], before[2:], after[2:])
    taps = tuple(range(2, weight.dim()))
    first, second = weight, weight.square()
    for axis, shares in enumerate(inside):
        fitting = shares.to(weight).reshape(-1, *(1,) * (len(taps) - 1 - axis))
        first, second = first * fitting, second * fitting
    found = []
    for part in (first.sum(taps), second.sum(taps)):
        rows = part.reshape(groups, part.shape[0] // groups, part.shape[1])
        found.append((rows.transpose(1, 2) if transposed else rows).contiguous().cpu())
    return found[0], found[1], groups


def _inside(
    named: Mapping[str, Any], kernel: Sequence[int], before: Sequence[int], after: Sequence[int]
) -> list[Tensor]:
    """For every axis and tap of a kernel the share of positions at which it lies inside the input."""

    def each(name: str, default: int) -> list[int]:
        given = named.get(name, default)
        listed = list(given) if isinstance(given, (list, tuple)) else [given]
        return [int(value) for value in (listed * len(kernel) if len(listed) == 1 else listed)]

    strides, dilations = each("stride", 1), each("dilation", 1)
    if isinstance(named.get("padding"), str):
        same = named["padding"] == "same"
        pads = [dilation * (size - 1) // 2 * same for size, dilation in zip(kernel, dilations, strict=True)]
    else:
        pads = each("padding", 0)
    found = []
    for size, extent, count, stride, dilation, pad in zip(
        kernel, before, after, strides, dilations, pads, strict=True
    ):
        places = np.arange(count)[None] * stride + np.arange(size)[:, None] * dilation - pad
        found.append(torch.from_numpy(((places >= 0) & (places < extent)).mean(1)))
    return found


def elementwise(function: Function) -> Response:
    """Any elementwise function of a Gaussian, expanded in Hermite polynomials.

    With ``e_k`` the coefficients at mean and total variance and ``rho`` the share of the data in the latter,
    two draws of the noise on the same data have the covariance ``sum_k rho^k e_k^2``: that is the data part.
    """
    nodes, basis = _hermite(_NODES, _ORDERS)

    def respond(profiles: Sequence[Profile]) -> Profile:
        x = profiles[0]
        total = x.total
        points = x.mean[:, None] + total.clamp_min(0).sqrt()[:, None] * nodes[:, None]
        values = function(points.flatten(0, 1)).reshape(points.shape).double()
        second = torch.matmul(basis[0], values.square())
        if x.quiet:
            mean = torch.matmul(basis[0], values)
            return Profile.of(mean, (second - mean.square()).clamp_min(0))
        weighted = torch.matmul(basis, values)
        mean, coefficients = weighted[:, 0], weighted[:, 1:].square()
        whole = (second - mean.square()).clamp_min(0)
        share = (x.data / total.clamp_min(_TINY)).clamp(0, 1)
        # Horner's rule; what the orders that are left out hold counts as of the next one.
        data = (whole - coefficients.sum(1)).clamp_min(0)
        for order in reversed(range(coefficients.shape[1])):
            data = coefficients[:, order] + share * data
        data = share * data
        noise = (whole - data).clamp_min(0)
        own = noise * (x.own / x.noise.clamp_min(_TINY))
        return Profile.of(mean, data, own, noise - own)

    return respond


def _hermite(count: int, orders: int) -> tuple[Tensor, Tensor]:
    nodes, masses = np.polynomial.hermite_e.hermegauss(count)
    rows = [
        np.polynomial.hermite_e.hermeval(nodes, [0] * order + [1]) / math.sqrt(math.factorial(order))
        for order in range(orders + 1)
    ]
    return torch.from_numpy(nodes), torch.from_numpy(np.stack(rows) * (masses / masses.sum()))


def added(profiles: Sequence[Profile], result: Profile) -> Response:
    """A sum: variances add up, and their parts keep the correlations that they had.

    Args:
        profiles: The operands as recorded.
        result: The sum as recorded.
    """

    def correlation(kept: Callable[[Profile], Tensor]) -> Tensor:
        parts = [kept(profile) for profile in profiles]
        between = kept(result) - parts[0] - parts[1]
        both = 2 * (parts[0] * parts[1]).sqrt()
        return torch.where(both > 0, between / both.clamp_min(_TINY), torch.zeros_like(both)).clamp(-1, 1)

    data, noise = correlation(lambda profile: profile.data), correlation(lambda profile: profile.noise)

    def respond(given: Sequence[Profile]) -> Profile:
        a, b = given
        spread = a.data + b.data + 2 * data * (a.data * b.data).sqrt()
        if a.quiet:
            return Profile.of(a.mean + b.mean, spread)
        between = 2 * noise * (a.noise * b.noise).sqrt()
        shared = (a.shared + b.shared + between).clamp_min(0)
        return Profile.of(a.mean + b.mean, spread, a.own + b.own, shared)

    return respond


def multiplied(profiles: Sequence[Profile]) -> Profile:
    """The product of two signals that know nothing of each other, as a feature and its gate."""
    a, b = profiles
    first, second = a.data + a.mean.square(), b.data + b.mean.square()
    mean = a.mean * b.mean
    data = (first * second - mean.square()).clamp_min(0)
    if a.quiet:
        return Profile.of(mean, data)
    noise = a.noise * second + b.noise * first + a.noise * b.noise
    return Profile.of(mean, data, torch.zeros_like(noise), noise)


def concatenated(profiles: Sequence[Profile]) -> Profile:
    """Channels side by side."""
    return joined(profiles, -1)


def renormalised(groups: int) -> Response:
    """A norm over the groups of channels of each sample, without its affine part."""

    def respond(profiles: Sequence[Profile]) -> Profile:
        x = profiles[0]
        mean, variances = (part.unflatten(-1, (groups, -1)) for part in x.parts())
        middle = mean.mean(-1, keepdim=True)
        size = (mean.square() + variances.sum(0)).mean(-1, keepdim=True) - middle.square()
        size = size.clamp_min(_TINY)
        return Profile(((mean - middle) / size.sqrt()).flatten(-2), (variances / size).flatten(-2))

    return respond


def gathered(channels: Tensor) -> Response:
    """Every channel of the result is one of the operand's."""

    def respond(profiles: Sequence[Profile]) -> Profile:
        return Profile(*(part[..., channels] for part in profiles[0].parts()))

    return respond


def averaged(channels: int) -> Response:
    """Where nothing is known of the channels: the average over those of all operands, in each."""

    def respond(profiles: Sequence[Profile]) -> Profile:
        alike = [profile.averaged(channels) for profile in profiles]
        mean = sum((x.mean for x in alike[1:]), alike[0].mean) / len(alike)
        return Profile(mean, sum((x.variances for x in alike[1:]), alike[0].variances) / len(alike))

    return respond
