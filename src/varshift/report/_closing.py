"""The foot of the page: what could not be seen, and what to do next."""

from __future__ import annotations

from typing import TYPE_CHECKING

from varshift.report._page import Line, Span, heading, paragraph
from varshift.report._runs import not_needed, skipped_lines, watched_only

if TYPE_CHECKING:
    from varshift.report._report import Report

EXPLAINED = 3
COMMAND = 31


def closing_section(report: Report, width: int, *, full: bool = False) -> list[Line]:
    """The limits of this report and the next steps."""
    lines: list[Line] = []
    skipped = skipped_lines(report, width, full=full)
    if report.limits or skipped:
        lines += heading("What could not be seen", width)
        for limit in report.limits:
            lines += paragraph(limit, width, mark=Span("· ", "quiet"))
        lines += skipped
    steps = next_steps(report)
    if steps:
        lines += heading("What next", width)
        for command, meaning in steps:
            lines += _step(command, meaning, width)
    return lines


def _step(command: str, meaning: str, width: int) -> list[Line]:
    if not command:
        return paragraph(meaning, width)
    first = [Span("  "), Span(command, "code")]
    if len(command) < COMMAND and 2 + COMMAND + len(meaning) <= width:
        return [(*first, Span(" " * (COMMAND - len(command))), Span(meaning, "quiet"))]
    return [tuple(first), *paragraph(meaning, width, indent=4, style="quiet")]


def next_steps(report: Report) -> list[tuple[str, str]]:
    """Commands worth running now, each with what it does; a command may be empty."""
    steps: list[tuple[str, str]] = []
    cures = {cure.code for finding in report.findings for cure in finding.cures}
    if "recalibrate" in cures and report.data is not None:
        steps.append(("vs.recalibrate(model, loader)", "statistics that fit the deployed network"))
        steps.append(
            (
                f"varshift recalibrate {report.model.target} --weights IN --data ... --out OUT.safetensors",
                "the same for a checkpoint, on the command line",
            )
        )
    codes = list(report.findings_by_code)
    steps += [
        (f"varshift explain {code}", "what it is, how it is measured, what cures it")
        for code in codes[:EXPLAINED]
    ]
    if len(codes) > EXPLAINED:
        steps.append(("", f"and likewise {', '.join(codes[EXPLAINED:])}."))
    if watched_only(report):
        steps.append(
            (
                "vs.check(model, loader, history=watch.report)",
                "measures what the training left behind, and what its faults cost",
            )
        )
    elif report.data is None and not not_needed(report, "measurement"):
        steps.append(
            (
                "vs.check(model, loader), or --data",
                "measures what is only predicted here, and splits the gap between training and deployment",
            )
        )
    if report.repeat:
        steps.append((report.repeat, "repeats this check"))
    return steps
