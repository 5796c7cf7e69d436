"""The gap between training and deployment as a waterfall."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from varshift.report._page import Line, Span, Style, columns, heading, paragraph
from varshift.report._words import figure, percent, signed
from varshift.rules import thresholds

if TYPE_CHECKING:
    from varshift.probe import Gap
    from varshift.report._report import Report

# The states in order, each with the step that leads to it and what is changed by it.
_STEPS = (
    ("train", None, "as trained: noise on, batch statistics"),
    ("clean", "noise", "noise switched off"),
    ("clean_eval", "function", "modules in eval mode"),
    ("recalibrated", "small-batch", "statistics of all the data instead of each batch"),
    ("recalibrated_noisy", "variance-shift", "statistics learned with the noise on"),
    ("eval", "statistics", "statistics as shipped"),
    ("deployed", "transform", "the data of deployment"),
)


def gap_section(report: Report, width: int) -> list[Line]:
    """Each step from the training state to the deployed one, with its standard error and a bar."""
    gap = report.gap
    if gap is None:
        return []
    metric = "distance of the outputs" if gap.metric == "relative_l2" else gap.metric
    lines = heading("From training to deployment", width, f"{metric}, same batches and weights")
    lines += _rows(gap, width)
    first, last = gap.states.get("train"), gap.states.get(gap.last)
    total = "" if first is None or last is None else f"In all {signed(last - first)}. "
    lines += paragraph(
        f"{total}Each step changes one thing. Noise is meant to go, small-batch noise too. What "
        "variance-shift and statistics add is what recalibrating would take away.",
        width,
        style="quiet",
    )
    return lines


def _rows(gap: Gap, width: int) -> list[Line]:
    steps = {step.cause: step for step in gap.steps}
    accuracy, kl = gap.accuracy or {}, gap.kl or {}
    extra = bool(accuracy or kl) and width >= 72
    rows = [row for row in _STEPS if row[0] in gap.states]
    values = [gap.states.get(state) for state, _, _ in rows]
    finite = [value for value in values if value is not None and math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
    meaning = max(len(text) for _, _, text in _STEPS) if width >= 125 else 0
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
    for (state, cause, text), value in zip(rows, values, strict=True):
        step = steps.get(cause) if cause else None  # type: ignore[call-overload]
        delta = step.delta if step else None
        style = _style(cause, delta, step.stderr if step else None)
        cells = [
            Span(cause or state, "strong" if cause is None else "plain"),
            Span(_fixed(value, decimals)),
            Span(_fixed(delta, decimals, sign=True) if step else "", style),
            Span(_fixed(step.stderr, decimals) if step and step.stderr is not None else "", "quiet"),
            Span(_extra(accuracy, kl, state) if extra else ""),
            Span(step_bar(before, value, low, high, bar), style),
        ]
        if meaning:
            cells.append(Span(text, "quiet"))
        table.append(cells)
        before = value
    table.append(_last_row(table[-1], values[-1], low, high, bar))
    return columns(table, widths, right=(1, 2, 3, 4))


def _extra(accuracy: Mapping[str, float], kl: Mapping[str, float], state: str) -> str:
    return percent(accuracy.get(state)) if accuracy else figure(kl.get(state))


def _last_row(row: list[Span], value: float | None, low: float, high: float, bar: int) -> list[Span]:
    """The deployed state once more, as the sum below the steps that lead to it."""
    cells = [Span("eval", "strong"), row[1], Span(""), Span(""), row[4]]
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


def _style(cause: str | None, delta: float | None, stderr: float | None) -> Style:
    """Red for what hurts and can be cured, green for what helps, quiet for what is within its error."""
    if cause is None or delta is None:
        return "strong"
    if not math.isfinite(delta):
        return "error"
    if abs(delta) <= thresholds.LOSS_STANDARD_ERRORS * (stderr or 0.0):
        return "quiet"
    if delta < 0:
        return "good"
    return "error" if cause in ("variance-shift", "statistics") else "plain"


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
