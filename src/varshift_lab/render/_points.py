"""Curves as points with their spread, before anything is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from varshift import VarshiftError
from varshift_lab.render._values import Results, found, measured, numbers, rows, spread
from varshift_lab.studies import Curve, Series


@dataclass(frozen=True, slots=True)
class Points:
    """A curve.

    Attributes:
        x: Where the points are, or their names.
        mean: Mean over the seeds; NaN where nothing has been measured.
        deviation: Standard deviation over the seeds; NaN of fewer than two.
        count: Number of seeds behind the point with the fewest.
        wanted: Number of seeds there shall be.
    """

    x: tuple[float | str, ...]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    count: int
    wanted: int


def points(curve: Curve, results: Results) -> Points:
    """The points of a curve: one for each series, or those of the only one if its measurements are lists.

    Raises:
        VarshiftError: If there are more or fewer places than points.
    """
    if len(curve.series) == 1 and _is_list(curve.series[0], results):
        columns = _columns(rows(curve.series[0], results))
    else:
        columns = [list(numbers(series, results).values()) for series in curve.series]
    spreads = [spread(column) for column in columns]
    x = curve.x or tuple(range(len(spreads)))
    if spreads and len(x) != len(spreads):
        raise VarshiftError(
            f"the curve {curve.label!r} has {len(spreads)} points and {len(x)} places for them."
        )
    return Points(
        tuple(x),
        tuple(one.mean for one in spreads),
        tuple(one.deviation for one in spreads),
        min((one.count for one in spreads), default=0),
        max((len(series.trials) for series in curve.series), default=0),
    )


def _is_list(series: Series, results: Results) -> bool:
    return any(isinstance(measured(*one, series.quantity), list) for one in found(series, results))


def _columns(lists: Sequence[Sequence[float]]) -> list[list[float]]:
    # Trainings of one configuration are equally long; were they not, points would still be compared in place.
    longest = max(map(len, lists), default=0)
    return [[values[place] for values in lists if place < len(values)] for place in range(longest)]


def image(series: Series, results: Results) -> Any:
    """Rows of pixels of the first seed that has a result; None without any."""
    for trial, result in found(series, results):
        return measured(trial, result, series.quantity)
    return None
