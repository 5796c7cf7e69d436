"""Mean and variance of elementwise functions of a Gaussian, for every element of a tensor at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

from varshift import functional
from varshift.functional import KalmanState

Function = Callable[[Tensor], Tensor]
Moments = tuple[Tensor, Tensor]
Polynomial = tuple[float, ...]

_HALF = math.sqrt(0.5)
_SMALL = 1e-12  # a variance below it counts as none
_TAIL = 13.0  # standard deviations, beyond which single precision has no numbers, and is slow to say so
# Largest standard deviation, and the nodes that keep the error of SiLU and GELU below about 1e-5 up to it.
_NODES = ((0.5, 8), (1.0, 12), (2.0, 32), (4.0, 64))
_MOST_NODES = 128


def leaky_relu_moments(mean: Tensor, variance: Tensor, slope: Tensor | float = 0.0) -> Moments:
    r"""Moments of ``x`` above 0 and ``slope x`` below it.

    .. math::
        m (\alpha + (1 - \alpha) \Phi(a)) + s (1 - \alpha) \varphi(a), \qquad
        s^2 (\alpha^2 + 2 \alpha (1 - \alpha) \Phi(a) + (1 - \alpha)^2 R(a)), \qquad a = m / s

    :math:`R` is the variance of the rectified unit Gaussian. It is computed from the tail below :math:`-|a|`,
    which loses no digits and is never negative. Most of what a prediction computes by itself is computed
    here, so that intermediate results are overwritten.
    """
    square = variance.clamp_min(_SMALL)
    std = square.sqrt()
    u = (mean.abs() / std).mul_(_HALF).clamp_max_(_TAIL * _HALF)  # |a| / sqrt(2)
    twice = torch.erfc(u)  # the tail below -|a|
    g = (u * u).neg_().exp_().div_(math.sqrt(math.pi)).addcmul_(u, twice, value=-1)
    first = torch.addcmul(mean.clamp_min(0), std, g, value=_HALF)
    positive = twice.neg_().add_(1).copysign_(mean).add_(1).mul_(0.5)  # the distribution function at a
    rectified = torch.addcmul(positive, g, u.add_(g, alpha=0.5), value=-1).clamp_min_(0)
    if isinstance(slope, float) and slope == 0:
        return first, square * rectified
    rest = 1 - slope
    spread = slope * slope + 2 * slope * rest * positive + rest * rest * rectified
    return slope * mean + rest * first, square * spread


def piecewise_moments(
    mean: Tensor, variance: Tensor, knots: Sequence[float], pieces: Sequence[Polynomial]
) -> Moments:
    """Moments of a piecewise polynomial of degree 2 at most; see `varshift.functional`."""
    return functional.piecewise_moments(KalmanState(mean, variance), knots, pieces)


def exponential_moments(
    mean: Tensor, variance: Tensor, above: float, below: float, rate: float = 1.0
) -> Moments:
    """Moments of ``above x`` for positive x and ``below (exp(rate x) - 1)`` for negative x (ELU and kin)."""
    return functional.exponential_moments(KalmanState(mean, variance), above, below, rate)


def gelu_moments(mean: Tensor, variance: Tensor) -> Moments:
    """Moments of ``x Phi(x)``, exact."""
    return functional.gelu_moments(KalmanState(mean, variance))


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
