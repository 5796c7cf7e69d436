"""Moments of rectified normal values, the usual input of a dropout."""

from __future__ import annotations

import math
from dataclasses import dataclass

from varshift._arguments import finite, non_negative


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean and variance of a distribution.

    Attributes:
        mean: First moment.
        variance: Second central moment.
    """

    mean: float
    variance: float

    @property
    def second(self) -> float:
        """Second moment about zero, ``mean**2 + variance``."""
        return self.mean**2 + self.variance


def half_normal_moments(std: float = 1.0) -> Moments:
    """Moments of ``|z|`` with ``z ~ N(0, std**2)``.

    ``mean = std sqrt(2 / pi)``, ``variance = std**2 (1 - 2 / pi)``.

    Args:
        std: Standard deviation of the normal variable, at least 0.

    Returns:
        Mean (in units of `std`) and variance.

    Raises:
        ValueError: If `std` is negative or not finite.
    """
    std = non_negative("std", std)
    return Moments(std * math.sqrt(2 / math.pi), std**2 * (1 - 2 / math.pi))


def relu_moments(mean: float = 0.0, std: float = 1.0) -> Moments:
    """Moments of ``max(z, 0)`` with ``z ~ N(mean, std**2)``.

    With ``a = mean / std`` and the standard normal density phi and distribution Phi::

        E[max(z, 0)]    = mean Phi(a) + std phi(a)
        E[max(z, 0)**2] = (mean**2 + std**2) Phi(a) + mean std phi(a)

    For the standard normal: mean ``1 / sqrt(2 pi)`` = 0.398942, variance ``1/2 - 1/(2 pi)`` = 0.340845.

    Args:
        mean: Mean before rectification.
        std: Standard deviation before rectification, at least 0.

    Returns:
        Mean and variance after rectification.

    Raises:
        ValueError: If `std` is negative or an argument is not finite.
    """
    mean, std = finite("mean", mean), non_negative("std", std)
    if std == 0:
        return Moments(max(mean, 0.0), 0.0)
    ratio = mean / std
    above = math.erfc(-ratio / math.sqrt(2)) / 2
    density = math.exp(-(ratio**2) / 2) / math.sqrt(2 * math.pi)
    first = mean * above + std * density
    second = (mean**2 + std**2) * above + mean * std * density
    # Far below zero the two terms cancel to rounding: neither moment can be negative.
    first = max(first, 0.0)
    return Moments(first, max(second - first**2, 0.0))
