"""The gap between training and deployment as a waterfall."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from varshift.report._page import Line, Span, Style, columns, heading, paragraph
from varshift.report._steps import STEP_MEANINGS
from varshift.report._words import figure, percent, uncertain
from varshift.rules import costs_by_step, loss_severity

if TYPE_CHECKING:
    from varshift.probe import Gap
    from varshift.report._report import Report

_AS_TRAINED = "as trained: noise on, batch statistics"


def gap_section(report: Report, width: int) -> list[Line]:
    """Each step from the training state to the deployed one, with its standard error and a bar."""
    gap = report.gap
    if gap is None:
        return []
    metric = "distance of the outputs" if gap.metric == "relative_l2" else gap.metric
    lines = heading("From training to deployment", width, f"{metric}, same batches and weights")
    lines += _rows(gap, width)
    return lines + paragraph(" ".join(_closing(gap, report)), width, style="quiet")


def _closing(gap: Gap, report: Report) -> list[str]:
    """What the steps add up to, and how to read them."""
    sentences = []
    if change := gap.change("train", gap.last):
        sentences.append(f"In all {uncertain(*change)}.")
    sentences.append("Each step changes one thing; coloured is what makes evaluation worse beyond its error.")
    if report.noises:
        sentences.append("Noise is meant to go.")
    finite = {step.cause for step in gap.steps if step.delta is not None and math.isfinite(step.delta)}
    if report.layers and {"variance-shift", "statistics"} <= finite:
        sentences.append(
            "Recalibrating takes away what variance-shift and statistics add together."
            if "statistics" in costs_by_step(gap)
            else "The statistics as shipped undo the variance shift: nothing is left to recalibrate."
        )
    return sentences


def _rows(gap: Gap, width: int) -> list[Line]:
    accuracy, kl = gap.accuracy or {}, gap.kl or {}
    extra = bool(accuracy or kl) and width >= 72
    rows = list(zip(gap.states, (None, *gap.steps), strict=False))  # the first state has no step before it
    values = list(gap.states.values())
    finite = [value for value in values if value is not None and math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
    meaning = max(map(len, (_AS_TRAINED, *STEP_MEANINGS.values()))) if width >= 125 else 0
    widths = [14, 9, 9, 9, 9 if extra else 0]
    bar = width - 2 - sum(widths) - len(widths) - (meaning + 1 if meaning else 0) - 1
    bar = max(8, min(48, bar))
    decimals = _decimals(finite)
    head = ["", gap.metric if len(gap.metric) < 10 else "distance", "change", "± error"]
    head += ["accuracy" if accuracy else "KL" if kl else ""] if extra else [""]
    head.append("")
    widths.append(bar)
    if meaning:
        widths.append(meaning)
        head.append("")
    table = [[Span(text, "quiet") for text in head]]
    before: float | None = None
    harm = harms(gap)
    for (state, step), value in zip(rows, values, strict=True):
        cause, delta = (step.cause, step.delta) if step else (None, None)
        style: Style = "strong" if cause is None else harm.get(cause, "quiet")
        cells = [
            Span(cause or state, "strong" if cause is None else "plain"),
            Span(_fixed(value, decimals)),
            Span(_fixed(delta, decimals, sign=True) if step else "", style),
            Span(_fixed(step.stderr, decimals) if step and step.stderr is not None else "", "quiet"),
            Span(_extra(accuracy, kl, state) if extra else ""),
            Span(step_bar(before, value, low, high, bar), style),
        ]
        if meaning:
            cells.append(Span(STEP_MEANINGS[cause] if cause else _AS_TRAINED, "quiet"))
        table.append(cells)
        before = value
    table.append(_last_row(gap.last, table[-1], values[-1], low, high, bar))
    return columns(table, widths, right=(1, 2, 3, 4))


def _extra(accuracy: Mapping[str, float], kl: Mapping[str, float], state: str) -> str:
    return percent(accuracy.get(state)) if accuracy else figure(kl.get(state))


def _last_row(
    state: str, row: list[Span], value: float | None, low: float, high: float, bar: int
) -> list[Span]:
    """The deployed state once more, as the sum below the steps that lead to it."""
    cells = [Span(state, "strong"), row[1], Span(""), Span(""), row[4]]
    cells.append(Span(step_bar(None, value, low, high, bar), "strong"))
    return cells if len(row) == len(cells) else [*cells, Span("as deployed", "quiet")]


def _decimals(values: list[float]) -> int:
    """Decimals that give the largest value four digits."""
    largest = max((abs(value) for value in values), default=0.0)
    return min(8, max(0, 3 - math.floor(math.log10(largest)))) if largest > 0 else 4


def _fixed(value: float | None, decimals: int, *, sign: bool = False) -> str:
    if value is None or not math.isfinite(value):
        return figure(value)
    text = f"{value:{'+' if sign else ''}.{decimals}f}"
    return text if len(text) <= 9 else f"{value:{'+' if sign else ''}.2e}"


def harms(gap: Gap) -> dict[str, Style]:
    """The colour of each step: red or yellow for harm beyond its error, by what it costs.

    A step that is not finite is red; one within its error, or undone by the next, is quiet. Outputs without
    a loss are never red, for nobody can say which are worse.
    """
    styles: dict[str, Style] = {}
    costs = costs_by_step(gap)
    for step in gap.steps:
        cost = costs.get(step.cause)
        if step.delta is None or not math.isfinite(step.delta):
            styles[step.cause] = "error"
        elif cost is None or not cost.significant:
            styles[step.cause] = "quiet"
        elif cost.delta < 0:
            styles[step.cause] = "plain"
        elif gap.metric != "loss":
            styles[step.cause] = "warning"
        else:
            severity = loss_severity(cost)
            styles[step.cause] = "plain" if severity == "advice" else severity
    return styles


def step_bar(before: float | None, after: float | None, low: float, high: float, width: int) -> str:
    """A bar from one value to the next on an axis from low to high; a mark when nothing lies between them."""
    if after is None or not math.isfinite(after) or high <= low:
        return ""

    def cell(value: float) -> int:
        return min(width - 1, max(0, round((value - low) / (high - low) * (width - 1))))

    end = cell(after)
    start = cell(before) if before is not None and math.isfinite(before) else end
    if start == end:
        return " " * end + ("◆" if before is None else "│")
    left, right = sorted((start, end))
    return " " * left + "█" * (right - left + 1)
