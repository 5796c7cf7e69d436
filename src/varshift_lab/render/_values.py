"""From a series to its values, seed by seed."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from varshift import VarshiftError
from varshift.store import Result
from varshift.trials import Trial
from varshift_lab.studies import Series

Results = Mapping[Trial, Result]


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and spread of some values.

    Attributes:
        count: Number of values.
        mean: Their mean; NaN of none.
        deviation: Standard deviation of the sample, with ``n - 1`` below; NaN of fewer than two.
    """

    count: int
    mean: float
    deviation: float

    @property
    def error(self) -> float:
        """Standard error of the mean."""
        return self.deviation / math.sqrt(self.count) if self.count else math.nan


def spread(values: Iterable[float]) -> Spread:
    """Mean and standard deviation, each summed exactly."""
    values = list(values)
    count = len(values)
    mean = math.fsum(values) / count if count else math.nan
    if count < 2:
        return Spread(count, mean, math.nan)
    return Spread(count, mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1)))


def found(series: Series, results: Results) -> list[tuple[Trial, Result]]:
    """Trials of a series that have a result."""
    return [(trial, results[trial]) for trial in series.trials if trial in results]


def measured(trial: Trial, result: Result, quantity: str) -> Any:
    """One measurement of one trial.

    Raises:
        VarshiftError: If the trial did not measure it.
    """
    if quantity not in result.measurements:
        known = ", ".join(difflib.get_close_matches(quantity, result.measurements, 3, 0.3)) or "others"
        raise VarshiftError(
            f"quantity={quantity!r} was not measured by {trial.title}, but {known} and so on. If "
            "the recipe has changed since, `varshift lab run ... --fresh` runs it again."
        )
    return result.measurements[quantity]


def numbers(series: Series, results: Results) -> dict[int, float]:
    """By seed, the values of a series whose measurements are numbers.

    Raises:
        VarshiftError: If one is a list, or was not measured.
    """
    values = {}
    for trial, result in found(series, results):
        value = measured(trial, result, series.quantity)
        if not isinstance(value, (int, float)):
            raise VarshiftError(
                f"quantity={series.quantity!r} of {trial.title} is a list; a table needs a number."
            )
        values[trial.seed] = float(value)
    return values


def rows(series: Series, results: Results) -> list[Sequence[float]]:
    """For each seed with a result, the values of a series whose measurements are lists.

    Raises:
        VarshiftError: If one is no list of numbers, or was not measured.
    """
    values = []
    for trial, result in found(series, results):
        value = measured(trial, result, series.quantity)
        if not isinstance(value, list) or not all(isinstance(item, (int, float)) for item in value):
            raise VarshiftError(f"quantity={series.quantity!r} of {trial.title} is no list of numbers.")
        values.append(value)
    return values
