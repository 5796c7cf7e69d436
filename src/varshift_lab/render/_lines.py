"""The lines of a table as plain data, which every format is written from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from varshift.store import Result
from varshift_lab.render._values import Results, Spread, found, numbers, spread
from varshift_lab.studies import PaperFigure, Row, Table


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a table.

    Attributes:
        labels: What stands in the table's columns.
        values: Number of seeds, mean and standard deviation.
        missing: Seeds without a result.
        seeds: Seeds with one.
        paper: What the paper states, if anything.
        ran_on: Devices, versions, threads and precision, once for each combination.
        dates: First and last day of the trials.
        pflop: Floating-point operations of one trial on the average, in 10^15; None where not counted.
        seconds: Time of one trial on the average; None without any.
    """

    labels: tuple[str, ...]
    values: Spread
    missing: tuple[int, ...]
    seeds: tuple[int, ...]
    paper: PaperFigure | None
    ran_on: tuple[str, ...]
    dates: tuple[str, ...]
    pflop: float | None
    seconds: float | None


def lines(table: Table, results: Results) -> list[Line]:
    """The lines of a table, complete or not."""
    return [_line(row, results) for row in table.rows]


def _line(row: Row, results: Results) -> Line:
    have = found(row.series, results)
    values = numbers(row.series, results)
    each = [result for _, result in have]
    flops = [result.measurements["pflop"] for result in each if "pflop" in result.measurements]
    dates = sorted({str(result.provenance.get("date", "")) for result in each} - {""})
    return Line(
        labels=row.labels,
        values=spread(values.values()),
        missing=tuple(trial.seed for trial in row.series.trials if trial not in results),
        seeds=tuple(values),
        paper=row.paper,
        ran_on=tuple(dict.fromkeys(ran_on(result) for result in each)),
        dates=tuple(dict.fromkeys((dates[0], dates[-1]))) if dates else (),
        pflop=_mean(flops) if flops and len(flops) == len(each) else None,
        seconds=_mean(result.seconds for result in each) if each else None,
    )


def _mean(values: Iterable[float]) -> float:
    return spread(values).mean


def ran_on(result: Result) -> str:
    """What one trial ran on, in words."""
    known = result.provenance
    threads = known.get("threads", "?")
    parts = [str(known.get("device", "unknown device")), f"{threads} thread{'' if threads == 1 else 's'}"]
    parts += [f"{name} {known[name]}" for name in ("torch", "varshift") if name in known]
    if "python" in known:
        parts.append(f"Python {known['python']}")
    if known.get("precision", "32-true") != "32-true":
        parts.append(str(known["precision"]))
    if known.get("compiled"):
        parts.append("compiled")
    return ", ".join(parts)
