"""The head of the page: what was found, in sentences."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from varshift.report._levels import excess, style_of
from varshift.report._page import Line, Span, Style, line, paragraph
from varshift.report._runs import not_needed, ran_in_words
from varshift.report._words import counted, enumerated, figure, large, module_name, percent, ratio, uncertain
from varshift.rules import thresholds

if TYPE_CHECKING:
    from varshift.probe import Gap
    from varshift.report._report import Report
    from varshift.report._rows import LayerRow

_CAPTURE = {
    "recorded": "captured from one recorded pass per mode",
    "exported": "read from an exported program",
    "decomposed": "captured from one recorded pass per mode, with gradients",
    "export": "captured by torch.export",
    "dispatch": "captured from one real batch (the exporter refused the model)",
    "hooks": "captured by module hooks only (noise in functional calls stays unseen)",
}


def summary_section(report: Report, width: int) -> list[Line]:
    """Verdict, worst layer, gap, and what all of it rests on."""
    title = line(Span("varshift", "quiet"), Span(" check ", "quiet"), Span(report.model.target, "strong"))
    lines: list[Line] = [title, ()]
    style: Style = report.worst or "good"
    lines += paragraph(verdict(report), width, mark=Span("● ", style), style="strong")
    for sentence in (worst_layer_sentence(report), gap_sentence(report.gap)):
        if sentence:
            lines += paragraph(sentence, width, indent=4)
    lines += paragraph(basis(report), width, indent=4, style="quiet")
    return lines


def verdict(report: Report) -> str:
    """How many findings of which severity, in one sentence."""
    counts = {
        severity: sum(1 for finding in report.findings if finding.severity == severity)
        for severity in ("error", "warning", "advice")
    }
    names = {
        "error": ("error", "errors"),
        "warning": ("warning", "warnings"),
        "advice": ("piece of advice", "pieces of advice"),
    }
    phrases = [counted(counts[key], *names[key]) for key in names if counts[key]]
    if phrases:
        return f"{enumerated(phrases)}."
    if ran := ran_in_words(report):
        return f"Nothing found {ran}."
    if not report.layers:
        return "Nothing found: the network has no norm with running statistics."
    if report.data is None:
        return "Nothing found in how the network is built; no data was given, so nothing was measured."
    worst = worst_layer(report)
    if worst is not None and style_of(excess(worst)) != "good":
        return "Nothing found by the rules that ran."
    return "Nothing found: the network computes at deployment what it learned."


def worst_layer(report: Report) -> LayerRow | None:
    """The norm with the largest shift beyond its control, None when none was measured."""
    measured = [row for row in report.layers if row.ratio is not None and excess(row) is not None]
    return max(measured, key=lambda row: excess(row) or 0.0, default=None)


def worst_layer_sentence(report: Report) -> str:
    """Which norm is worst off and by how much."""
    row = worst_layer(report)
    if row is None or row.shift is None:
        return ""
    beyond = excess(row)
    control = (
        f" ({ratio(row.control_ratio)} is what depth and small batches do alone)"
        if row.control_ratio is not None and abs(row.control_ratio - 1) >= 0.005
        else ""
    )
    seen = f"its input has {ratio(row.ratio)} times the variance that its statistics say{control}"
    if style_of(beyond) == "good":
        return f"The largest shift is {ratio(row.shift)}, at {module_name(row.name)}: {seen}."
    return f"Worst layer: {module_name(row.name)}, shift {ratio(row.shift)}: {seen}."


def gap_sentence(gap: Gap | None) -> str:
    """What the statistics cost as deployed, and how much of that has which cause."""
    if gap is None:
        return ""
    shipped, fitting = gap.states.get("eval"), gap.states.get("recalibrated")
    steps = {step.cause: step for step in gap.steps}
    shift, stale = steps.get("variance-shift"), steps.get("statistics")
    if shift is None or stale is None:
        return ""
    if shipped is None or not math.isfinite(shipped):
        return "The outputs as deployed are not finite."
    if fitting is None or not math.isfinite(fitting):
        return f"The {gap.metric} as deployed is {figure(shipped)}; recalibrated, it is not finite."
    causes = (
        f"variance shift {uncertain(shift.delta, shift.stderr)}, "
        f"stale or wrong statistics {uncertain(stale.delta, stale.stderr)}"
    )
    if gap.metric == "relative_l2":
        return (
            f"The outputs as deployed lie {percent(shipped)} (relative L2) from those with statistics that "
            f"fit: {causes}."
        )
    whole = ""
    trained = gap.states.get("train")
    if trained is not None and math.isfinite(trained):
        whole = (
            f"From training to deployment the {gap.metric} goes from {figure(trained)} to {figure(shipped)}. "
        )
    if not any(_significant(step.delta, step.stderr, fitting) for step in (shift, stale)):
        return f"{whole}The statistics as shipped cost nothing to speak of ({causes})."
    if shift.delta is not None and not _significant(shipped - fitting, None, fitting):
        # Re-estimated statistics: the two counterfactual steps are there and back again.
        return (
            f"{whole}The statistics as shipped fit the deployed network; those that training leaves behind "
            f"would have changed the {gap.metric} by {uncertain(shift.delta, shift.stderr)}."
        )
    right = ""
    if gap.accuracy and {"eval", "recalibrated"} <= set(gap.accuracy):
        right = f" (accuracy {percent(gap.accuracy['eval'])} and {percent(gap.accuracy['recalibrated'])})"
    return (
        f"{whole}With statistics that fit the deployed network it would be {figure(fitting)}{right}. "
        f"Between the two lie {causes}."
    )


def _significant(delta: float | None, stderr: float | None, level: float) -> bool:
    """Whether a step is beyond its own error and worth a thought, as the rules see it."""
    if delta is None or not math.isfinite(delta):
        return True
    error = thresholds.LOSS_STANDARD_ERRORS * (stderr or 0.0)
    return abs(delta) > max(error, thresholds.LOSS_SHARE * abs(level))


def basis(report: Report) -> str:
    """What the report rests on: model, data, capture."""
    model = report.model
    unseen = not_needed(report, "capture")
    unmeasured = "nothing measured" if not_needed(report, "measurement") else "no data"
    parts = [
        counted(model.parameters, "parameter").replace(str(model.parameters), large(model.parameters), 1),
        counted(model.norms, "norm"),
        "" if unseen else counted(model.noises, "noise site"),
        f"{counted(report.data.samples, 'sample')} in {counted(report.data.batches, 'batch', 'batches')}"
        if report.data
        else unmeasured,
        "not captured" if unseen else _CAPTURE.get(report.capture, f"captured by {report.capture}"),
        f"{report.framework.name} {report.framework.version}",
    ]
    return " · ".join(filter(None, parts))
