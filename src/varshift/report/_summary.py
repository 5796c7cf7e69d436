"""The head of the page: the verdict, how many findings there are, and what all of it rests on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from varshift.report._headline import experiments, explanation, headline, is_harmed
from varshift.report._page import Line, Span, Style, line, paragraph
from varshift.report._runs import not_needed, ran_in_words, watched_only
from varshift.report._words import counted, enumerated, large

if TYPE_CHECKING:
    from varshift.report._report import Report

ALL_IS_WELL = "Nothing found: the network computes at deployment what it learned."

_CAPTURE = {
    "recorded": "captured from one recorded pass per mode",
    "exported": "read from an exported program",
    "decomposed": "captured from one recorded pass per mode, with gradients",
    "export": "captured by torch.export",
    "dispatch": "captured from one real batch (the exporter refused the model)",
    "hooks": "captured by module hooks only (noise in functional calls stays unseen)",
}


def summary_section(report: Report, width: int) -> list[Line]:
    """Verdict, what explains it, number of findings, and what all of it rests on."""
    verb = " watch " if watched_only(report) else " check "
    title = line(Span("varshift", "quiet"), Span(verb, "quiet"), Span(report.model.target, "strong"))
    first, *others = sentences(report)
    lines: list[Line] = [title, ()]
    lines += paragraph(first, width, mark=Span("● ", _style(report)), style="strong")
    for sentence in others:
        lines += paragraph(sentence, width, indent=4)
    lines += paragraph(basis(report), width, indent=4, style="quiet")
    return lines


def sentences(report: Report) -> list[str]:
    """What the report says first: the verdict, then how many findings there are.

    That all is well is said only where the loss (without one, the outputs) is the same in both modes within
    its error, no step makes it worse, and every rule that could find something ran and found nothing.
    """
    verdict = report.verdict
    if verdict is None:
        return [counts(report)]
    if watched_only(report):
        return [_watched(report), "Nothing found so far." if report.ok else counts(report)]
    if all_is_well(report):
        return [ALL_IS_WELL, headline(verdict)]
    paragraphs = [headline(verdict), " ".join(explanation(verdict)), experiments(verdict), counts(report)]
    return [text for text in paragraphs if text]


def _watched(report: Report) -> str:
    """What was watched, in one sentence."""
    history = report.history
    assert history is not None
    steps = f"{counted(history.steps, 'step')} of training {'was' if history.steps == 1 else 'were'} watched"
    return f"{steps}; {history.moves or 'none'} of them moved the weights."


def all_is_well(report: Report) -> bool:
    """Whether loss and outputs agree between training and evaluation and nothing is open."""
    verdict = report.verdict
    agree = verdict is not None and verdict.state == "same" and verdict.step is None
    return agree and not report.findings and not ran_in_words(report)


def counts(report: Report) -> str:
    """How many findings of which severity, in one sentence; how many a baseline has, in another."""
    if not report.left_out:
        return _counts(report)
    known = f"{counted(report.left_out, 'finding')} of the baseline left out."
    return (
        f"Nothing new found; {known}"
        if report.ok
        else f"New: {_counts(report)} {known[0].upper()}{known[1:]}"
    )


def _counts(report: Report) -> str:
    names = {
        "error": ("error", "errors"),
        "warning": ("warning", "warnings"),
        "advice": ("piece of advice", "pieces of advice"),
    }
    numbers = {key: sum(finding.severity == key for finding in report.findings) for key in names}
    phrases = [counted(numbers[key], *names[key]) for key in names if numbers[key]]
    if phrases:
        return f"{enumerated(phrases)}."
    if ran := ran_in_words(report):
        return f"Nothing found {ran}."
    if report.data is None:
        return "Nothing found in how the network is built. No data was given, so nothing was measured."
    verdict = report.verdict
    if verdict is not None and verdict.state != "unknown" and not is_harmed(verdict):
        return "Nothing found: no step makes evaluation worse than it could be."
    return "Nothing found by the rules that ran."


def _style(report: Report) -> Style:
    """Colour of the verdict: that of the gravest finding; a loss that nothing explains is no good sign."""
    if report.worst is not None:
        return report.worst
    verdict = report.verdict
    if verdict is None:
        return "quiet"
    return "warning" if is_harmed(verdict) else "quiet" if verdict.state == "unknown" else "good"


def basis(report: Report) -> str:
    """What the report rests on: model, data, capture."""
    model = report.model
    if watched_only(report) and report.history is not None:
        every = report.history.every
        parts = [
            counted(model.parameters, "parameter").replace(str(model.parameters), large(model.parameters), 1),
            counted(model.norms, "norm"),
            f"statistics read {counted(report.history.readings, 'time')}"
            + (f", every {every} steps and one before" if every > 1 else ""),
            f"{report.framework.name} {report.framework.version}",
        ]
        return " · ".join(parts)
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
