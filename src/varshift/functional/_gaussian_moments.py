"""Mean and variance of elementwise functions of a Gaussian, element by element and differentiable."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ._kalman_state import KalmanState
from ._kalman_transitions import full_precision

_SMALLEST_VARIANCE = 1e-12  # a slope by the variance has 1 / standard deviation in it
_FAR = 40.0  # standard deviations beyond which the normal distribution is 0 or 1 in any precision


def _rule(nodes: np.ndarray, weights: np.ndarray) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(nodes), torch.from_numpy(weights)


# Enough for smooth functions up to a standard deviation of 4 (errors below 1e-6, tanh 1e-4).
_HERMITE = _rule(*np.polynomial.hermite_e.hermegauss(128))
_LEGENDRE = tuple(part.tolist() for part in np.polynomial.legendre.leggauss(20))


def piecewise_moments(
    state: KalmanState, knots: Sequence[float], pieces: Sequence[Sequence[float]]
) -> KalmanState:
    r"""Moments of a piecewise polynomial of degree 2 at most behind a Gaussian, in closed form.

    .. math::

        I_k(l, u) = \int_l^u z^k \phi(z)\, dz = l^{k-1} \phi(l) - u^{k-1} \phi(u) + (k - 1) I_{k-2}(l, u)

    Args:
        state: Mean and variance, of any shape.
        knots: Where one piece ends and the next begins, ascending.
        pieces: The coefficients of each piece, constant first: one piece more than knots.

    Example:
        >>> import torch
        >>> from varshift.functional import KalmanState
        >>> state = KalmanState(torch.zeros(1), torch.ones(1))
        >>> rectified = piecewise_moments(state, [0.0], [[0.0], [0.0, 1.0]])
        >>> round(rectified.mean.item(), 3)  # 1 / sqrt(2 pi)
        0.399
    """
    with full_precision(state.mean):
        mean, std = state.mean, state.var.clamp(min=_SMALLEST_VARIANCE).sqrt()
        edges = [((knot - mean) / std).clamp(-_FAR, _FAR) for knot in knots]
        nothing = torch.zeros_like(mean)
        below = [nothing, *(torch.special.ndtr(edge) for edge in edges), torch.ones_like(mean)]
        # u^k phi(u) at all edges; nothing at the infinite ones.
        powers = [[_density(edge) * edge**k for k in range(4)] for edge in edges]
        powers = [[nothing] * 4, *powers, [nothing] * 4]
        truncated: list[list[Tensor]] = []
        expanded: list[tuple[Tensor, Tensor, Tensor]] = []
        first = nothing
        for piece, coefficients in enumerate(pieces):
            c0, c1, c2 = (*coefficients, 0.0, 0.0)[:3]
            parts = [below[piece + 1] - below[piece]]
            for k in range(1, 5):
                part = powers[piece][k - 1] - powers[piece + 1][k - 1]
                parts.append(part + (k - 1) * parts[k - 2] if k > 1 else part)
            terms = (c0 + (c1 + c2 * mean) * mean, (c1 + 2 * c2 * mean) * std, c2 * std * std)
            truncated.append(parts)
            expanded.append(terms)  # f(m + s z) = terms[0] + terms[1] z + terms[2] z^2
            for term, part in zip(terms, parts, strict=False):
                first = first + term * part
        second = nothing
        for parts, (e0, e1, e2) in zip(truncated, expanded, strict=True):
            level = e0 - first  # around the mean, so that little is lost in the difference
            squared = (level * level, 2 * level * e1, e1 * e1 + 2 * level * e2, 2 * e1 * e2, e2 * e2)
            for term, part in zip(squared, parts, strict=True):
                second = second + term * part
        return KalmanState(first, second.clamp(min=0))


def exponential_moments(state: KalmanState, above: float, below: float, rate: float = 1.0) -> KalmanState:
    r"""Moments of ``above x`` for positive x and ``below (exp(rate x) - 1)`` for negative x (ELU and kin).

    .. math:: E[e^{k X}; X < 0] = e^{k m + k^2 s^2 / 2}\, \Phi(-(m + k s^2) / s)

    Args:
        state: Mean and variance, of any shape.
        above: The slope on the positive side.
        below: The limit on the negative side, with its sign turned.
        rate: The rate of the exponential.

    Example:
        >>> import torch
        >>> from varshift.functional import KalmanState
        >>> state = KalmanState(torch.zeros(1), torch.ones(1))
        >>> round(exponential_moments(state, above=1.0, below=0.0).mean.item(), 3)  # a ReLU
        0.399
    """
    with full_precision(state.mean):
        mean, var = state.mean, state.var.clamp(min=_SMALLEST_VARIANCE)
        std = var.sqrt()
        a = mean / std

        def truncated(k: float) -> Tensor:
            return torch.exp(k * mean + 0.5 * k * k * var + torch.special.log_ndtr(-(a + k * std)))

        zero, one, two = torch.special.ndtr(-a), truncated(rate), truncated(2 * rate)
        upper = torch.special.ndtr(a)
        linear = mean * upper + std * _density(a)
        first = above * linear + below * (one - zero)
        floor = below + first
        square = (mean * mean + var) * upper + mean * std * _density(a)
        second = above * above * square - 2 * above * first * linear + first * first * upper
        second = second + below * below * two - 2 * below * floor * one + floor * floor * zero
        return KalmanState(first, second.clamp(min=0))


def gelu_moments(state: KalmanState) -> KalmanState:
    r"""Moments of :math:`x \Phi(x)` behind a Gaussian, in closed form up to Owen's T.

    With :math:`w^2 = 1 + s^2` and :math:`b = m / w` the mean is :math:`m \Phi(b) + (s^2 / w) \phi(b)`.
    Owen's T is taken by Gauss-Legendre quadrature of its integral.

    Args:
        state: Mean and variance, of any shape.

    Example:
        >>> import torch
        >>> from varshift.functional import KalmanState
        >>> state = KalmanState(torch.zeros(1), torch.ones(1))
        >>> round(gelu_moments(state).mean.item(), 3)  # 1 / (2 sqrt(pi))
        0.282
    """
    with full_precision(state.mean):
        mean, var = state
        wide = (1 + var).sqrt()
        b = mean / wide
        phi, upper = _density(b), torch.special.ndtr(b)
        first = mean * upper + var / wide * phi
        inner_mean, inner = mean / (1 + var), var / (1 + var)
        inner_wide = (1 + inner).sqrt()
        c, ratio = phi / wide, inner_mean / inner_wide
        below = torch.special.ndtr(ratio)
        g0 = upper - 2 * _owen_t(b, (1 + 2 * var).rsqrt())
        g1 = c * below
        g3 = c * (inner_mean * below + inner / inner_wide * _density(ratio))
        half = var + 0.5
        g2 = torch.exp(-mean * mean / (2 * half)) / (2 * math.sqrt(math.pi) * (2 * math.pi * half).sqrt())
        second = (mean * mean + var) * g0 + 4 * mean * var * g1 + 2 * var * var * (g2 - g3)
        return KalmanState(first, (second - first * first).clamp(min=0))


def elementwise_moments(function: Callable[[Tensor], Tensor], state: KalmanState) -> KalmanState:
    r"""Moments of a smooth function of a Gaussian, by Gauss-Hermite quadrature with 128 nodes.

    .. math:: \mu' = E f(m + s Z), \qquad v' = E f(m + s Z)^2 - \mu'^2, \qquad Z \sim N(0, 1)

    Up to a standard deviation of 4 SiLU, GELU and their like come out to about 1e-6 and tanh to 1e-4.
    Functions with kinks or steps come out to a few thousandths of a standard deviation.

    Args:
        function: An elementwise function of tensors; it may write into what it is given.
        state: Mean and variance, of any shape.

    Example:
        >>> import torch
        >>> from varshift.functional import KalmanState, elementwise_moments
        >>> state = KalmanState(torch.zeros(1), torch.ones(1))
        >>> mean, var = elementwise_moments(torch.nn.functional.silu, state)
        >>> print(f"{mean.item():.4f} {var.item():.4f}")
        0.2066 0.3131
    """
    with full_precision(state.mean):
        mean, var = state
        std = var.clamp(min=_SMALLEST_VARIANCE).sqrt()
        shape = (-1, *[1] * mean.dim())
        nodes, weights = (part.to(mean).view(shape) for part in _HERMITE)
        weights = weights / weights.sum()
        values = function(mean + std * nodes)
        first = (weights * values).sum(0)
        return KalmanState(first, (weights * (values - first).square()).sum(0))


def _density(a: Tensor) -> Tensor:
    """Density of the standard normal distribution."""
    return torch.exp(-0.5 * a * a) / math.sqrt(2 * math.pi)


def _owen_t(h: Tensor, a: Tensor) -> Tensor:
    total = torch.zeros_like(h)
    for node, weight in zip(*_LEGENDRE, strict=True):  # one by one: these may be whole maps
        x = 0.5 * a * (1 + node)
        square = 1 + x * x
        total = total + weight * torch.exp(-0.5 * h * h * square) / square
    return total * a / (4 * math.pi)
