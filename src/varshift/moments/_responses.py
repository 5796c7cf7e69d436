"""How the profile of a result follows from the profiles of what an operation reads."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

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
        rows = x.to(matrix.dtype).reshape(x.shape[0], groups, -1).transpose(0, 1)
        return torch.bmm(rows, matrix.transpose(1, 2)).transpose(0, 1).flatten(1).double()

    def respond(profiles: Sequence[Profile]) -> Profile:
        mean, *variances = profiles[0].parts()
        return Profile(times(first, mean), *(times(second, part) for part in variances))

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
    name = next((key for key in ("weight", "mat2", "other") if isinstance(named.get(key), Tensor)), "")
    weight = named.get(name)
    if not isinstance(weight, Tensor) or weight.dim() < 2 or not weight.is_floating_point():
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
        std = total.clamp_min(0).sqrt()
        points = x.mean[:, None] + std[:, None] * nodes[:, None]
        values = function(points.flatten(0, 1)).reshape(points.shape).double()
        weighted = torch.einsum("on,knc->okc", basis, values)
        mean, coefficients = weighted[0], weighted[1:].square()
        second = torch.einsum("n,knc->kc", basis[0], values.square())
        whole = (second - mean.square()).clamp_min(0)
        share = (x.data / total.clamp_min(_TINY)).clamp(0, 1)
        power, data = torch.ones_like(share), torch.zeros_like(whole)
        for coefficient in coefficients:
            power = power * share
            data = data + power * coefficient
        data = data + power * share * (whole - coefficients.sum(0)).clamp_min(0)
        noise = (whole - data).clamp_min(0)
        own = torch.where(x.noise > 0, x.own / x.noise.clamp_min(_TINY), torch.zeros_like(noise))
        return Profile(mean, data, noise * own, noise * (1 - own))

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
        between = 2 * noise * (a.noise * b.noise).sqrt()
        own = a.own + b.own
        shared = (a.shared + b.shared + between).clamp_min(0)
        spread = a.data + b.data + 2 * data * (a.data * b.data).sqrt()
        return Profile(a.mean + b.mean, spread, own, shared)

    return respond


def multiplied(profiles: Sequence[Profile]) -> Profile:
    """The product of two signals that know nothing of each other, as a feature and its gate."""
    a, b = profiles
    first, second = a.data + a.mean.square(), b.data + b.mean.square()
    data = first * second - (a.mean * b.mean).square()
    noise = a.noise * second + b.noise * first + a.noise * b.noise
    return Profile(a.mean * b.mean, data.clamp_min(0), torch.zeros_like(noise), noise)


def concatenated(profiles: Sequence[Profile]) -> Profile:
    """Channels side by side."""
    return joined(profiles)


def renormalised(groups: int) -> Response:
    """A norm over the groups of channels of each sample, without its affine part."""

    def respond(profiles: Sequence[Profile]) -> Profile:
        x = profiles[0]
        parts = [part.reshape(part.shape[0], groups, -1) for part in x.parts()]
        middle = parts[0].mean(-1, keepdim=True)
        second = (parts[0].square() + parts[1] + parts[2] + parts[3]).mean(-1, keepdim=True)
        size = (second - middle.square()).clamp_min(_TINY)
        mean = (parts[0] - middle) / size.sqrt()
        return Profile(mean.flatten(1), *((part / size).flatten(1) for part in parts[1:]))

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
        columns = zip(*(profile.parts() for profile in alike), strict=True)
        return Profile(*(torch.stack(torch.broadcast_tensors(*column)).mean(0) for column in columns))

    return respond
