"""Noise in front of a max-pool: the bias of the mean for every kind of multiplicative noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

from varshift._arguments import count

from ._noise import noise_variance
from ._pooling import max_pool_mean_ratio

_STEPS = 512  # Simpson's rule; doubling both moves no ratio by more than 1e-5
_FACTORS = 128
_REACH = 8.0  # standard deviations after which a normal density adds nothing in double precision


def noisy_max_pool_mean_ratio(kind: str, rate: float, window: int) -> float:
    """Mean behind a max-pool in training over that in evaluation, with elementwise noise in front of it.

    For half-normal inputs ``h`` and independent factors ``m`` with ``E[m] = 1`` it is
    ``E[max m_i h_i] / E[max h_i]``. Every noise spreads the values and so raises their maximum; nothing
    compensates for it in evaluation. With the distribution ``F`` of one ``m h`` and ``n`` values in the
    window::

        E[max] = integral over x > 0 of 1 - F(x)**n  -  integral over x < 0 of F(x)**n

    Args:
        kind: ``"dropout"``, ``"uniform"`` (factor ``1 + U(-rate, rate)``) or ``"gaussian"`` (factor
            ``1 + N(0, rate**2)``).
        rate: DROP probability, half-width or standard deviation.
        window: Number of pooled elements, at least 1.

    Returns:
        The ratio, at least 1. For dropout it is `varshift.theory.max_pool_mean_ratio` at ``1 - rate``.

    Raises:
        ValueError: If the kind is another one, or an argument is out of range.
    """
    if kind not in ("dropout", "uniform", "gaussian"):
        raise ValueError(f"kind={kind!r} must be elementwise noise: dropout, uniform or gaussian.")
    variance = noise_variance(kind, rate)  # checks the rate
    window = count("window", window, 1)
    if kind == "dropout":
        return max_pool_mean_ratio(1 - rate, window)
    if variance == 0 or window == 1:
        return 1.0
    return _mean_of_maximum(kind, float(rate), window) / _mean_of_maximum("uniform", 0.0, window)


@lru_cache(maxsize=256)
def _mean_of_maximum(kind: str, rate: float, window: int) -> float:
    factors = _factors(kind, rate)
    end = _REACH * (1 + rate * (1 if kind == "uniform" else _REACH / 2))
    above = _simpson(lambda x: 1 - (1 - _tail(factors, x, 1)) ** window, end)
    return above - _simpson(lambda x: _tail(factors, x, -1) ** window, end)


def _factors(kind: str, rate: float) -> list[tuple[float, float]]:
    """Midpoints of the factor's distribution and their probabilities."""
    if rate == 0:
        return [(1.0, 1.0)]
    half = rate if kind == "uniform" else _REACH * rate
    step = 2 * half / _FACTORS
    offsets = [(index + 0.5) * step - half for index in range(_FACTORS)]
    weights = [1.0 if kind == "uniform" else math.exp(-((offset / rate) ** 2) / 2) for offset in offsets]
    total = sum(weights)
    return [(1 + offset, weight / total) for offset, weight in zip(offsets, weights, strict=True)]


def _tail(factors: list[tuple[float, float]], x: float, sign: int) -> float:
    """``P(m h > x)`` for sign 1, ``P(m h < -x)`` for sign -1, with ``x >= 0``."""
    return sum(
        weight * math.erfc(x / (sign * factor) / math.sqrt(2))
        for factor, weight in factors
        if sign * factor > 0
    )


def _simpson(function: Callable[[float], float], end: float) -> float:
    step = end / _STEPS
    inner = sum((4 if index % 2 else 2) * function(index * step) for index in range(1, _STEPS))
    return (function(0.0) + inner + function(end)) * step / 3
