r"""Which variants differ: paired t tests over seeds, corrected for their number.

Two variants that ran with the same seeds give one difference :math:`d_s` for each seed. Its mean
:math:`\bar d` has the standard error :math:`s / \sqrt n`, and :math:`t = \bar d \sqrt n / s` follows
Student's distribution with :math:`n - 1` degrees of freedom where the true difference is zero, if the
differences of different seeds are independent and normal. All pairs of a table are judged together by Holm's
rule: sorted, the i-th smallest of m p-values is multiplied by m - i + 1 and is at least the one before. So
the chance that any pair without a difference is called different is at most `LEVEL`, however the pairs depend
on one another.

Where variants may be stopped early, a pair may be looked at after several numbers of seeds. `LATE` of the
level is kept for the last look, the rest is shared out evenly among the earlier ones; the chance of any false
verdict, over all looks, stays below `LEVEL`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from varshift.comparison._student import needed, two_sided

LEVEL = 0.05  # the largest chance that any pair of equal variants is called different
POWER = 0.8  # chance that the number of seeds needed shows a difference as large as the one measured
MOST_SEEDS = 1000
LATE = 0.8
# Measurements that agree to this are equal but for rounding.
_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class PairedTest:
    """One paired test.

    Attributes:
        count: Number of pairs.
        mean: Mean of the differences; NaN without any.
        error: Its standard error; NaN with fewer than two pairs.
        p: Chance of a difference at least as far from zero where there is none, before any correction; 1
            where nothing can be said.
        same: Whether the two agree in every pair.
        fixed: Whether one of the two came out the same for every seed, though its figures are not counts:
            then seeds change nothing, and their number proves nothing.
    """

    count: int
    mean: float
    error: float
    p: float
    same: bool = False
    fixed: bool = False


def paired(first: Sequence[float], second: Sequence[float], resolution: float = 0.0) -> PairedTest:
    """Tests the differences ``first - second`` of equal seeds.

    Figures that are shares of a number of samples come in steps. Differences of such figures can agree by
    chance, which would make the error zero: the variance that rounding to steps of `resolution` brings, one
    sixth of its square for the difference of two, is added to that of the differences.

    Args:
        first: Figures of one variant.
        second: Those of the other, for the same seeds.
        resolution: Step of the figures, 0 where they have none.
    """
    differences = [a - b for a, b in zip(first, second, strict=True)]
    count = len(differences)
    if not count:
        return PairedTest(0, math.nan, math.nan, 1.0)
    mean = math.fsum(differences) / count
    same = all(difference == 0 for difference in differences)
    if count < 2:
        return PairedTest(count, mean, math.nan, 1.0, same=same)
    size = max(max(map(abs, first)), max(map(abs, second)))
    step = max(resolution, _ROUNDING * size)
    variance = math.fsum((d - mean) ** 2 for d in differences) / (count - 1) + step * step / 6
    error = math.sqrt(variance / count)
    fixed = not resolution and any(len(set(figures)) == 1 for figures in (first, second))
    if same or fixed or not error:
        return PairedTest(count, mean, error, 1.0, same=same, fixed=fixed)
    return PairedTest(count, mean, error, two_sided(mean / error, count - 1))


def holm(values: Sequence[float]) -> list[float]:
    """The p-values of several tests, corrected for their number by Holm's rule."""
    order = sorted(range(len(values)), key=values.__getitem__)
    corrected, largest = [1.0] * len(values), 0.0
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, values[index] * (len(values) - place)))
        corrected[index] = largest
    return corrected


def early_factor(looks: int) -> float:
    """The factor of the p-value at each look before the last one, where there are `looks` of them."""
    return looks / (1 - LATE)


def late_factor(looks: int) -> float:
    """The factor of the p-value at the last look, after `looks` earlier ones."""
    return 1 / LATE if looks else 1.0


def seeds_needed(test: PairedTest, tests: int) -> int | None:
    """How many seeds would tell a difference as large as the one measured, with the power `POWER`.

    The level is that of Bonferroni's rule over all tests of the table, which Holm's is never stricter than.

    Args:
        test: The test.
        tests: Number of tests in the table.

    Returns:
        The number; None where it cannot be told, or is beyond `MOST_SEEDS`.
    """
    if test.count < 2 or test.same or test.fixed or not test.error > 0:
        return None
    effect = test.mean / (test.error * math.sqrt(test.count))
    number = needed(effect, LEVEL / max(tests, 1), POWER, MOST_SEEDS) if effect else None
    return None if number is None else max(number, test.count + 1)
