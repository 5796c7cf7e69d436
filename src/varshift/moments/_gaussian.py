"""Mean and variance of elementwise functions of a Gaussian, for every element of a tensor at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]
Moments = tuple[Tensor, Tensor]
Polynomial = tuple[float, ...]

_SMALL = 1e-12  # a variance below it counts as none
_FAR = 40.0  # deviations from which a tail counts as empty
# Largest standard deviation, and the nodes that keep the error of SiLU and GELU below about 1e-5 up to it.
_NODES = ((0.5, 8), (1.0, 12), (2.0, 32), (4.0, 64))
_MOST_NODES = 128


def density(a: Tensor) -> Tensor:
    """Density of the standard normal distribution."""
    return torch.exp(-0.5 * a * a) / math.sqrt(2 * math.pi)


def cumulative(a: Tensor) -> Tensor:
    """Distribution function of the standard normal distribution, accurate in its lower tail."""
    return 0.5 * torch.erfc(-a / math.sqrt(2))


def leaky_relu_moments(mean: Tensor, variance: Tensor, slope: Tensor | float = 0.0) -> Moments:
    r"""Moments of ``x`` above 0 and ``slope x`` below it.

    .. math::
        m (\alpha + (1 - \alpha) \Phi(a)) + s (1 - \alpha) \varphi(a), \qquad
        s^2 (\alpha^2 + 2 \alpha (1 - \alpha) \Phi(a) + (1 - \alpha)^2 R(a)), \qquad a = m / s

    :math:`R` is the variance of the rectified unit Gaussian. It is computed from the tail below :math:`-|a|`,
    which loses no digits and is never negative.
    """
    std = variance.clamp_min(_SMALL).sqrt()
    a = mean / std
    tail = -a.abs()
    q, p = cumulative(tail), density(tail)
    g = tail * q + p
    rectified = (tail * tail + 1) * q + tail * p - g * g
    rectified = torch.where(a > 0, 1 - 2 * q + rectified, rectified)
    first = std * g + mean.clamp_min(0)
    if isinstance(slope, float) and slope == 0:
        return first, std * std * rectified
    positive = torch.where(a > 0, 1 - q, q)
    rest = 1 - slope
    spread = slope * slope + 2 * slope * rest * positive + rest * rest * rectified
    return slope * mean + rest * first, std * std * spread


def piecewise_moments(
    mean: Tensor, variance: Tensor, knots: Sequence[float], pieces: Sequence[Polynomial]
) -> Moments:
    r"""Moments of a piecewise polynomial of degree 2 at most, by truncated moments.

    .. math:: I_k(l, u) = \int_l^u z^k \varphi(z) dz
        = l^{k-1} \varphi(l) - u^{k-1} \varphi(u) + (k - 1) I_{k-2}(l, u)

    Args:
        mean: Means.
        variance: Variances.
        knots: Where one piece ends and the next begins, ascending.
        pieces: Coefficients of each piece, constant first: one more than knots.
    """
    std = variance.clamp_min(_SMALL).sqrt()
    edges = [((knot - mean) / std).clamp(-_FAR, _FAR) for knot in knots]
    below = [torch.zeros_like(mean), *(cumulative(edge) for edge in edges), torch.ones_like(mean)]
    # u^k phi(u) at all edges; nothing at the infinite ones.
    powers = [[torch.zeros_like(mean)] * 4]
    for edge in edges:
        row = [density(edge)]
        for _ in range(3):
            row.append(row[-1] * edge)
        powers.append(row)
    powers.append(powers[0])

    truncated: list[list[Tensor]] = []
    expanded: list[list[Tensor]] = []
    first = torch.zeros_like(mean)
    for piece, coefficients in enumerate(pieces):
        c0, c1, c2 = (*coefficients, 0.0, 0.0)[:3]
        parts = [below[piece + 1] - below[piece]]
        for k in range(1, 5):
            part = powers[piece][k - 1] - powers[piece + 1][k - 1]
            parts.append(part + (k - 1) * parts[k - 2] if k > 1 else part)
        # f(m + s z) = e0 + e1 z + e2 z^2
        terms = [c0 + (c1 + c2 * mean) * mean, (c1 + 2 * c2 * mean) * std, c2 * std * std]
        truncated.append(parts)
        expanded.append(terms)
        first = first + sum(term * part for term, part in zip(terms, parts, strict=False))
    second = torch.zeros_like(mean)
    for parts, (e0, e1, e2) in zip(truncated, expanded, strict=True):
        level = e0 - first  # around the mean, so that little is lost in the difference
        squared = (level * level, 2 * level * e1, e1 * e1 + 2 * level * e2, 2 * e1 * e2, e2 * e2)
        second = second + sum(term * part for term, part in zip(squared, parts, strict=True))
    return first, second.clamp_min(0)


def exponential_moments(
    mean: Tensor, variance: Tensor, above: float, below: float, rate: float = 1.0
) -> Moments:
    r"""Moments of ``above x`` for positive x and ``below (exp(rate x) - 1)`` for negative x (ELU and kin).

    .. math:: E[e^{k X}; X < 0] = e^{k m + k^2 s^2 / 2} \Phi(-(m + k s^2) / s)
    """
    variance = variance.clamp_min(_SMALL)
    std = variance.sqrt()
    a = mean / std

    def truncated(k: float) -> Tensor:
        tail = torch.special.log_ndtr(-(a + k * std))
        return torch.exp(k * mean + 0.5 * k * k * variance + tail)

    zero, one, two = cumulative(-a), truncated(rate), truncated(2 * rate)
    upper = 1 - zero
    linear = mean * upper + std * density(a)
    first = above * linear + below * (one - zero)
    floor = below + first
    square = (mean * mean + variance) * upper + mean * std * density(a)
    second = above * above * square - 2 * above * first * linear + first * first * upper
    second = second + below * below * two - 2 * below * floor * one + floor * floor * zero
    return first, second.clamp_min(0)


def gelu_moments(mean: Tensor, variance: Tensor) -> Moments:
    r"""Moments of :math:`x \Phi(x)`, exact; Owen's T by Gauss-Legendre quadrature of its integral.

    With :math:`w^2 = 1 + s^2` and :math:`b = m / w` the mean is
    :math:`m \Phi(b) + (s^2 / w) \varphi(b)`.
    """
    wide = (1 + variance).sqrt()
    b = mean / wide
    phi, upper = density(b), cumulative(b)
    first = mean * upper + variance / wide * phi
    inner_mean, inner = mean / (1 + variance), variance / (1 + variance)
    inner_wide = (1 + inner).sqrt()
    c, ratio = phi / wide, inner_mean / inner_wide
    below = cumulative(ratio)
    g0 = upper - 2 * _owen_t(b, (1 + 2 * variance).rsqrt())
    g1 = c * below
    g3 = c * (inner_mean * below + inner / inner_wide * density(ratio))
    half = variance + 0.5
    g2 = torch.exp(-mean * mean / (2 * half)) / (2 * math.sqrt(math.pi) * (2 * math.pi * half).sqrt())
    second = (mean * mean + variance) * g0 + 4 * mean * variance * g1 + 2 * variance**2 * (g2 - g3)
    return first, (second - first * first).clamp_min(0)


def _owen_t(h: Tensor, a: Tensor) -> Tensor:
    total = torch.zeros_like(h)
    for node, weight in zip(*_legendre(20), strict=True):
        x = 0.5 * a * (1 + node)
        square = 1 + x * x
        total = total + weight * torch.exp(-0.5 * h * h * square) / square
    return total * a / (4 * math.pi)


def quadrature_moments(
    function: Function, mean: Tensor, variance: Tensor, nodes: int | None = None
) -> Moments:
    """Moments of any smooth function by Gauss-Hermite quadrature.

    Args:
        function: An elementwise function.
        mean: Means.
        variance: Variances.
        nodes: Number of nodes; by default as many as the largest variance asks for. SiLU and GELU then come
            out to about 1e-5; functions with kinks or steps to a few hundredths of a standard deviation.
    """
    std = variance.clamp_min(0).sqrt()
    if nodes is None:
        largest = float(std.max()) if std.numel() else 0.0
        nodes = next((count for limit, count in _NODES if largest <= limit), _MOST_NODES)
    middle = function(mean)  # differences from it, so that little is lost where the variance is small
    first, second = torch.zeros_like(middle), torch.zeros_like(middle)
    for node, weight in zip(*_hermite(nodes), strict=True):
        value = function(mean + node * std) - middle
        first += weight * value
        second += weight * value * value
    return middle + first, (second - first * first).clamp_min(0)


@cache
def _hermite(count: int) -> tuple[list[float], list[float]]:
    nodes, weights = np.polynomial.hermite_e.hermegauss(count)
    return nodes.tolist(), (weights / weights.sum()).tolist()


@cache
def _legendre(count: int) -> tuple[list[float], list[float]]:
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return nodes.tolist(), weights.tolist()
