"""Tables, figures and claims: which trials they need, and what they show of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal

from varshift.trials import Trial


@dataclass(frozen=True, slots=True)
class PaperFigure:
    """What a paper states.

    Attributes:
        value: The figure, in the unit of the table.
        caveat: What has to be known to compare with it, such as other hyper-parameters or a digitised plot.
    """

    value: float
    caveat: str = ""


@dataclass(frozen=True, slots=True)
class Series:
    """One quantity over the seeds of one configuration.

    Attributes:
        trials: One per seed.
        quantity: Which of their measurements.
    """

    trials: tuple[Trial, ...]
    quantity: str


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table: one quantity of one configuration.

    Attributes:
        labels: What is written in the table's columns.
        series: Where the figures come from.
        paper: What the paper states, if anything.
    """

    labels: tuple[str, ...]
    series: Series
    paper: PaperFigure | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """A table with one figure per row, so that each can carry its own provenance.

    Attributes:
        name: Name within the recipe, such as ``table3``.
        title: One line.
        columns: Headings of the labels.
        unit: What the figures are, such as ``test error, %``.
        rows: The rows.
        note: What has to be known to read it; scale and caveats.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    unit: str
    rows: tuple[Row, ...]
    note: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row.labels) != len(self.columns):
                raise ValueError(f"labels={row.labels} must be one for each of the columns {self.columns}.")

    def series(self) -> Iterator[Series]:
        """All that it needs."""
        return (row.series for row in self.rows)


@dataclass(frozen=True, slots=True)
class Curve:
    """One curve, or one set of bars, with its spread over the seeds.

    Attributes:
        label: Its name in the legend.
        series: One for each point, where measurements are numbers; or a single one whose measurements are
            lists: the curve itself.
        x: Where the points are, or their names; empty for 0, 1, 2 and so on.
        paper: What the paper states at each point, None for nothing there; empty for nothing at all.
    """

    label: str
    series: tuple[Series, ...]
    x: tuple[float | str, ...] = ()
    paper: tuple[float | None, ...] = ()


@dataclass(frozen=True, slots=True)
class Panel:
    """One pair of axes.

    Attributes:
        title: Its title.
        curves: What is drawn.
        x_label: Label of the horizontal axis.
        y_label: Label of the vertical axis.
        kind: Lines, bars, or points without lines.
        log_y: Logarithmic vertical axis.
        picture: An image drawn beside the axes: a measurement of rows of pixels, each a grey value or a list
            of three, from 0 to 1. That of the first seed is shown.
    """

    title: str
    curves: tuple[Curve, ...]
    x_label: str
    y_label: str
    kind: Literal["lines", "bars", "points"] = "lines"
    log_y: bool = False
    picture: Series | None = None


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure.

    Attributes:
        name: Name within the recipe, such as ``figure4``.
        title: One line.
        panels: Its axes, row by row.
        columns: Axes side by side.
        note: What has to be known to read it.
    """

    name: str
    title: str
    panels: tuple[Panel, ...]
    columns: int = 2
    note: str = ""

    def series(self) -> Iterator[Series]:
        """All that it needs."""
        for panel in self.panels:
            yield from (one for curve in panel.curves for one in curve.series)
            if panel.picture is not None:
                yield panel.picture


@dataclass(frozen=True, slots=True)
class Claim:
    """A statement of a paper about two configurations, put to the test seed by seed.

    It holds when ``lower - higher`` (the mean over pairs of equal seed) is below `margin` by more than two
    standard errors, fails when it is above it by as much, and is undecided between.

    Attributes:
        text: The claim, one sentence.
        lower: What is said to be smaller.
        higher: What is said to be larger.
        margin: How much the first may lie above the second and still do no harm; negative where a least gap
            is claimed.
        source: Where the paper says so.
    """

    text: str
    lower: Series
    higher: Series
    margin: float = 0.0
    source: str = ""

    def series(self) -> Iterator[Series]:
        """All that it needs."""
        return iter((self.lower, self.higher))


def trials_of(series: Iterable[Series]) -> list[Trial]:
    """The trials behind some series, each once, in their order."""
    return list(dict.fromkeys(trial for one in series for trial in one.trials))


def with_seeds(study: Any, count: int) -> Any:
    """A table, figure or claim with so many seeds in each of its series.

    The first seeds are those it has; more of them count on from the largest. A series whose trials differ in
    more than their seed stays as it is.

    Args:
        study: The table, figure or claim, or a part of one.
        count: Number of seeds, at least 1.
    """
    if isinstance(study, Series):
        return replace(study, trials=_reseeded(study.trials, count))
    if isinstance(study, tuple):
        return tuple(with_seeds(item, count) for item in study)
    if is_dataclass(study) and not isinstance(study, (type, Trial)):
        kept = {item.name: getattr(study, item.name) for item in fields(study)}
        return replace(study, **{name: with_seeds(value, count) for name, value in kept.items()})
    return study


def _reseeded(trials: tuple[Trial, ...], count: int) -> tuple[Trial, ...]:
    if not trials or len({replace(trial, seed=0) for trial in trials}) > 1:
        return trials
    largest = max(trial.seed for trial in trials)
    more = (replace(trials[0], seed=largest + 1 + place) for place in range(count - len(trials)))
    return (*trials[:count], *more)
