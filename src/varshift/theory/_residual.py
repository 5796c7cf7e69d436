"""Inflation of a norm's variance by noise along the paths of a residual network: training over evaluation."""

from __future__ import annotations

from collections.abc import Sequence

from varshift._arguments import count, keep_probability, non_negative, positive

from ._noise import bernoulli_noise_variance
from ._shift import exact_delta, noise_delta


def direct_inflation(keep: float, mean: float = 0.0, variance: float = 1.0) -> float:
    """Inflation where a dropout feeds a norm directly: ``r = 1/k + (q/k) mean**2 / variance``.

    The reciprocal of `delta_a`. Source: derived for residual positions.

    Args:
        keep: KEEP probability ``k`` in (0, 1]; ``q = 1 - k``.
        mean: Mean of the dropout's input.
        variance: Its variance, above 0.

    Returns:
        The inflation, at least 1.

    Raises:
        ValueError: If an argument is out of range.
    """
    return 1 / noise_delta(bernoulli_noise_variance(keep), mean, variance)


def weighted_inflation(
    keep: float, weights: Sequence[float], second_moments: Sequence[float], test_variance: float
) -> float:
    """Inflation through a weight layer: ``r = 1 + (q/k) sum_i w_i**2 (var_i + mean_i**2) / (w' C w)``.

    The reciprocal of `exact_delta`. A weight layer alone does not remove the shift: for uncorrelated inputs
    this equals `direct_inflation`. Source: derived for residual positions.

    Args:
        keep: KEEP probability ``k`` in (0, 1].
        weights: One weight per unit.
        second_moments: ``var_i + mean_i**2`` of each unit.
        test_variance: Variance ``w' C w`` of the response without noise, above 0.

    Returns:
        The inflation, at least 1.

    Raises:
        ValueError: If an argument is out of range.
    """
    variance = positive("test_variance", test_variance)
    return 1 / exact_delta(variance, weights, second_moments, bernoulli_noise_variance(keep))


def diluted_inflation(
    trunk_variance: float, trunk_inflation: float, branch_variance: float, branch_inflation: float
) -> float:
    """Inflation behind the sum of trunk and branch: ``(V r_V + f r_w) / (V + f)``.

    Trunk and branch are taken as uncorrelated; variances are those without noise. The trunk dilutes the
    branch's noise, the less so the more earlier branches were noisy. Source: derived for residual
    positions.

    Args:
        trunk_variance: ``V``, at least 0.
        trunk_inflation: ``r_V``, above 0.
        branch_variance: ``f``, at least 0.
        branch_inflation: ``r_w``, above 0.

    Raises:
        ValueError: If an argument is out of range or both variances are 0.
    """
    v = non_negative("trunk_variance", trunk_variance)
    f = non_negative("branch_variance", branch_variance)
    if v + f == 0:
        raise ValueError("trunk_variance=0 and branch_variance=0: at least one must be above 0.")
    r_v = positive("trunk_inflation", trunk_inflation)
    r_w = positive("branch_inflation", branch_inflation)
    return (v * r_v + f * r_w) / (v + f)


def trunk_inflation(keep: float, blocks: int) -> float:
    """Growth of the trunk's second moment, forward and gradient, with a dropout on the trunk in each block.

    ``keep ** -blocks``. Source: derived for residual positions.

    Args:
        keep: KEEP probability in (0, 1].
        blocks: Number of blocks, at least 0.

    Returns:
        The growth, at least 1; infinite where a float cannot hold it.

    Raises:
        ValueError: If an argument is out of range.
    """
    keep, blocks = keep_probability("keep", keep), count("blocks", blocks, 0)
    try:
        return (1 / keep) ** blocks
    except OverflowError:
        return float("inf")
