"""Noise and pooling: dropout before or after global average pooling, and dropout in front of max-pooling."""

from __future__ import annotations

import math
from collections.abc import Sequence

from varshift._arguments import count, finite, keep_probability, non_negative, vectors

from ._noise import bernoulli_noise_variance, equal_noise_keep

# Half-normal values above 12 standard deviations have probability 4e-33: nothing for windows below 1e15.
_QUADRATURE_END = 12.0
_QUADRATURE_STEPS = 4096


def head_noise_after_pooling(keep: float, weights: Sequence[float], means: Sequence[float]) -> float:
    """Noise variance of one logit with elementwise dropout behind global average pooling, given the map.

    ``(q/k) sum_c w_c**2 mean_c**2``. Channel dropout in front of the pooling gives the same.
    Source: derived for residual positions.

    Args:
        keep: KEEP probability ``k`` in (0, 1]; ``q = 1 - k``.
        weights: The classifier's weights of this logit, one per channel.
        means: Spatial mean of each channel.

    Raises:
        ValueError: If an argument is out of range or the vectors differ in length.
    """
    pairs = vectors("weights", weights, "means", means)
    return bernoulli_noise_variance(keep) * sum((weight * mean) ** 2 for weight, mean in pairs)


def head_noise_before_pooling(
    keep: float, weights: Sequence[float], second_moments: Sequence[float], positions: int
) -> float:
    """Noise variance of one logit with elementwise dropout in front of global average pooling, given the map.

    ``(q/k) sum_c w_c**2 mean(h_c**2) / S``. Source: derived for residual positions.

    Args:
        keep: KEEP probability ``k`` in (0, 1]; ``q = 1 - k``.
        weights: The classifier's weights of this logit, one per channel.
        second_moments: Spatial mean of the squares of each channel, at least 0.
        positions: Number of positions ``S = H W`` of the map.

    Raises:
        ValueError: If an argument is out of range or the vectors differ in length.
    """
    positions = count("positions", positions, 1)
    pairs = vectors("weights", weights, "second_moments", second_moments)
    total = sum(weight**2 * non_negative("second_moments", moment) for weight, moment in pairs)
    return bernoulli_noise_variance(keep) * total / positions


def head_noise_ratio(mean: float, std: float, positions: int) -> float:
    """Noise variance before pooling over that after pooling, for one channel: ``(1 + CV**2) / S``.

    ``CV = std / mean`` over the positions of the map. At most 1 for a non-negative map (equal when a single
    position is not zero); a map with both signs can exceed 1.
    Source: derived for residual positions.

    Args:
        mean: Spatial mean of the channel, not 0.
        std: Its spatial standard deviation (divided by S, not S - 1), at least 0.
        positions: Number of positions ``S``.

    Raises:
        ValueError: If an argument is out of range.
    """
    mean, std = finite("mean", mean), non_negative("std", std)
    if mean == 0:
        raise ValueError("mean=0: dropout behind the pooling adds no noise there, the ratio is not defined.")
    return (1 + (std / mean) ** 2) / count("positions", positions, 1)


def head_noise_ratio_independent(mean: float, variance: float, positions: int) -> float:
    """Ratio of the expected noise variances, before over after, when positions are independent.

    ``(v + c**2) / (S c**2 + v)``: the spatial mean of a finite map has itself a variance of ``v / S``.
    Source: derived for residual positions.

    Args:
        mean: Mean ``c`` of one position.
        variance: Variance ``v`` of one position, at least 0.
        positions: Number of positions ``S``.

    Raises:
        ValueError: If an argument is out of range, or mean and variance are both 0.
    """
    c, v = finite("mean", mean), non_negative("variance", variance)
    positions = count("positions", positions, 1)
    if c == 0 and v == 0:
        raise ValueError("mean=0 and variance=0: an empty map has no noise, the ratio is not defined.")
    return (v + c**2) / (positions * c**2 + v)


def head_equal_noise_keep(keep: float, mean: float, std: float, positions: int) -> float:
    """Keep probability in front of the pooling that is as noisy at the logits as `keep` behind it.

    ``q'/k' = (q/k) S / (1 + CV**2)``. Source: derived for residual positions.

    Args:
        keep: KEEP probability behind the pooling, in (0, 1].
        mean: Spatial mean of the channel, not 0.
        std: Its spatial standard deviation, at least 0.
        positions: Number of positions ``S``.

    Returns:
        The keep probability ``k'``.

    Raises:
        ValueError: If an argument is out of range.
    """
    return equal_noise_keep(bernoulli_noise_variance(keep) / head_noise_ratio(mean, std, positions))


def max_pool_mean_ratio(keep: float, window: int) -> float:
    """Mean behind a max-pool in training over that in evaluation, with elementwise dropout in front of it.

    For half-normal inputs: ``E[max of the window with each value kept with probability keep and scaled by
    1 / keep, else 0] / E[max of the whole window]``. The maximum of a random subset is little smaller than
    that of all, so the rescaling is not compensated and the mean is up to ``1 / keep`` too large in training:
    1.43 for a window of 2 x 2 at keep 0.5. With ``T(x) = erfc(x / sqrt(2))``, the chance of exceeding x::

        E[max of n kept values] = integral over x > 0 of 1 - (1 - keep T(x))**n

    Args:
        keep: KEEP probability in (0, 1].
        window: Number of pooled elements, at least 1.

    Returns:
        The ratio, in [1, 1 / keep).

    Raises:
        ValueError: If an argument is out of range.
    """
    keep, window = keep_probability("keep", keep), count("window", window, 1)
    return _expected_maximum(keep, window) / keep / _expected_maximum(1.0, window)


def _expected_maximum(keep: float, window: int) -> float:
    def exceeds(x: float) -> float:
        one = keep * math.erfc(x / math.sqrt(2))
        return 1.0 if one >= 1 else -math.expm1(window * math.log1p(-one))

    step = _QUADRATURE_END / _QUADRATURE_STEPS
    inner = sum((4 if index % 2 else 2) * exceeds(index * step) for index in range(1, _QUADRATURE_STEPS))
    return (exceeds(0.0) + inner + exceeds(_QUADRATURE_END)) * step / 3
