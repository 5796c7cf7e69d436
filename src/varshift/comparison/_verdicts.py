"""From the figures of all seeds to rows and verdicts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from varshift.comparison._comparison import Outcome, Pair, State, VariantRow
from varshift.comparison._judge import (
    LEVEL,
    MOST_SEEDS,
    PairedTest,
    early_factor,
    holm,
    late_factor,
    paired,
    seeds_needed,
)
from varshift.comparison._variants import Variant
from varshift.report import figure

Figures = Mapping[int, Mapping[str, float]]  # by seed, what was measured


@dataclass(frozen=True, slots=True)
class Criterion:
    """What variants are judged by.

    Attributes:
        measure: Name of the figure.
        higher: Whether a higher one is better.
    """

    measure: str = "loss"
    higher: bool = False

    def values(self, figures: Figures, seeds: Sequence[int]) -> list[float]:
        """The figure for some seeds."""
        return [float(figures[seed][self.measure]) for seed in seeds]

    def resolution(self, figures: Figures) -> float:
        """The step of the figure: one sample of an accuracy, else 0."""
        if self.measure != "accuracy":
            return 0.0
        return 1.0 / max((entry["samples"] for entry in figures.values()), default=1.0)


@dataclass(frozen=True, slots=True)
class Looks:
    """How often pairs are looked at.

    Attributes:
        early: Numbers of seeds at which a variant may be stopped, before the last.
        last: The number of all seeds.
    """

    early: tuple[int, ...]
    last: int

    def factor(self, count: int) -> float:
        """The factor of the p-value of a test over `count` seeds."""
        if not self.early:
            return 1.0
        return late_factor(len(self.early)) if count >= self.last else early_factor(len(self.early))


def judge_pairs(
    results: Mapping[str, Figures],
    names: Sequence[str],
    criterion: Criterion,
    looks: Looks,
    *,
    final: bool = False,
) -> list[Pair]:
    """The verdicts on all pairs of some variants, corrected for the number of all of them.

    Args:
        results: For each variant, what was measured by seed.
        names: The variants in their order; those without results count as pairs too.
        criterion: What they are judged by.
        looks: How often they are looked at.
        final: Correct by Bonferroni's rule, so that what differs now also does when other pairs have more
            seeds; Holm's, which is never stricter, may take a verdict back.
    """
    pairs, tests = [], []
    for first, second in itertools.combinations(names, 2):
        one, two = results.get(first, {}), results.get(second, {})
        seeds = [seed for seed in one if seed in two]
        test = paired(
            criterion.values(one, seeds),
            criterion.values(two, seeds),
            max(criterion.resolution(one), criterion.resolution(two)) if seeds else 0.0,
        )
        pairs.append((first, second))
        tests.append(test)
    raw = [min(1.0, test.p * looks.factor(test.count)) for test in tests]
    corrected = [min(1.0, p * len(raw)) for p in raw] if final else holm(raw)
    return [
        _pair(first, second, test, p, len(tests), criterion)
        for (first, second), test, p in zip(pairs, tests, corrected, strict=True)
        if results.get(first) and results.get(second)
    ]


def _pair(first: str, second: str, test: PairedTest, p: float, tests: int, criterion: Criterion) -> Pair:
    outcome: Outcome = "not told apart"
    better, number = "", None
    if test.count > 1 and test.same:
        outcome = "same"
    elif test.count < 2 or test.fixed:
        outcome = "unknown"
    elif p < LEVEL:
        outcome = "differ"
        better = first if (test.mean > 0) == criterion.higher else second
    else:
        number = seeds_needed(test, tests)
    return Pair(
        first,
        second,
        test.count,
        None if math.isnan(test.mean) else test.mean,
        None if math.isnan(test.error) else test.error,
        p,
        outcome,
        better,
        number,
        _text(first, second, test, p, outcome, better, number, criterion),
    )


def _text(
    first: str,
    second: str,
    test: PairedTest,
    p: float,
    outcome: Outcome,
    better: str,
    number: int | None,
    criterion: Criterion,
) -> str:
    both = f"{first} and {second}"
    if outcome == "differ":
        other = second if better == first else first
        size, error = figure(abs(test.mean)), figure(test.error, 2)
        return (
            f"{both} differ: {better} is better than {other}, by {size} ± {error} in {criterion.measure} "
            f"(p = {figure(max(p, 1e-12), 2)})."
        )
    if outcome == "same":
        return f"{both} cannot be told apart: they are the same in all {test.count} seeds."
    if outcome == "unknown" and test.fixed:
        return f"{both}: seeds change nothing in one of them, so that no number of seeds can tell."
    if outcome == "unknown":
        seeds = "no seed" if not test.count else "one seed"
        return f"{both}: with {seeds} in common nothing can be told."
    would = f"{number} would do" if number is not None else f"more than {MOST_SEEDS} would be needed"
    return f"{both} cannot be told apart with {test.count} seeds; {would}."


def row_of(
    variant: Variant,
    figures: Figures,
    criterion: Criterion,
    state: State = "measured",
    note: str = "",
) -> VariantRow:
    """The row of one variant."""
    seeds = tuple(figures)
    values = tuple(criterion.values(figures, seeds))
    mean = math.fsum(values) / len(values) if values else None
    spread = None
    if mean is not None and len(values) > 1:
        spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))

    def average(name: str) -> float | None:
        several = [entry[name] for entry in figures.values() if name in entry]
        return math.fsum(several) / len(several) if several else None

    return VariantRow(
        variant.name,
        variant.says,
        state,
        seeds,
        values,
        mean,
        spread,
        average("loss"),
        average("accuracy"),
        average("gap"),
        average("seconds"),
        note,
    )


def hopeless(pairs: Sequence[Pair], reference: str) -> dict[str, Pair]:
    """The variants that are settled to be worse than another one, with the verdict; never the reference."""
    found: dict[str, Pair] = {}
    for pair in pairs:
        if pair.outcome == "differ":
            worse = pair.second if pair.better == pair.first else pair.first
            if worse != reference:
                found.setdefault(worse, pair)
    return found
