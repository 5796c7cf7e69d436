"""Mean and second moment of elementwise functions of a Gaussian, for every element of a tensor at once."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]
Moments = tuple[Tensor, Tensor]

_SMALL = 1e-12  # a variance below it counts as none
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(10)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()


def _density(a: Tensor) -> Tensor:
    return torch.exp(-0.5 * a * a) / math.sqrt(2 * math.pi)


def _cumulative(a: Tensor) -> Tensor:
    return 0.5 * torch.erfc(-a / math.sqrt(2))


def relu_moments(mean: Tensor, variance: Tensor) -> Moments:
    r"""``E max(X, 0)`` and ``E max(X, 0)^2`` for :math:`X \sim N(m, s^2)`, with :math:`a = m / s`.

    .. math:: m \Phi(a) + s \varphi(a), \qquad (m^2 + s^2) \Phi(a) + m s \varphi(a)
    """
    std = variance.clamp_min(_SMALL).sqrt()
    a = mean / std
    below, density = _cumulative(a), _density(a)
    first = mean * below + std * density
    return first, (mean * mean + variance) * below + mean * std * density


def piecewise_linear_moments(
    mean: Tensor, variance: Tensor, knots: tuple[float, ...], slopes: tuple[float, ...], start: float
) -> Moments:
    """Moments of a continuous piecewise linear function.

    Args:
        mean: Means.
        variance: Variances.
        knots: Where its slope changes, ascending.
        slopes: Slope left of the first knot, between knots, and right of the last: one more than knots.
        start: Its value at the first knot.
    """
    std = variance.clamp_min(_SMALL).sqrt()
    edges = [(knot - mean) / std for knot in knots]
    cumulative = [_cumulative(edge) for edge in edges]
    density = [_density(edge) for edge in edges]
    first, second = torch.zeros_like(mean), torch.zeros_like(mean)
    value = start
    for piece, slope in enumerate(slopes):
        left, right = piece - 1, piece
        if piece > 1:
            value += slopes[piece - 1] * (knots[piece - 1] - knots[piece - 2])
        anchor = knots[max(left, 0)]
        # On this piece f(x) = offset + slope * x, and x = mean + std * z.
        offset = value - slope * anchor
        low = cumulative[left] if piece else torch.zeros_like(mean)
        high = cumulative[right] if piece < len(knots) else torch.ones_like(mean)
        low_density = density[left] if piece else torch.zeros_like(mean)
        high_density = density[right] if piece < len(knots) else torch.zeros_like(mean)
        low_edge = edges[left] * low_density if piece else torch.zeros_like(mean)
        high_edge = edges[right] * high_density if piece < len(knots) else torch.zeros_like(mean)
        zero, one = high - low, low_density - high_density
        two = zero + low_edge - high_edge
        level, rise = offset + slope * mean, slope * std
        first = first + level * zero + rise * one
        second = second + level**2 * zero + 2 * level * rise * one + rise**2 * two
    return first, second


def quadrature_moments(function: Function, mean: Tensor, variance: Tensor) -> Moments:
    """Moments of any smooth function by Gauss-Hermite quadrature with ten nodes."""
    std = variance.clamp_min(0).sqrt()
    first, second = torch.zeros_like(mean), torch.zeros_like(mean)
    for node, weight in zip(_NODES.tolist(), _WEIGHTS.tolist(), strict=True):
        value = function(mean + node * std)
        first += weight * value
        second += weight * value * value
    return first, second
