"""What ran and what did not, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from varshift.evidence import NOT_NEEDED
from varshift.report._page import Line, Span, paragraph
from varshift.report._words import counted, enumerated
from varshift.rules import NOT_SELECTED

if TYPE_CHECKING:
    from varshift.report._report import Report

NAMED = 4


def not_needed(report: Report, evidence: str) -> bool:
    """Whether evidence of this kind was left out because no rule that was asked for needs it."""
    return any(run.name == evidence and run.reason == NOT_NEEDED for run in report.evidence)


def ran_in_words(report: Report) -> str:
    """Which rules the report rests on, where not all of them ran that could; empty where they did.

    Rules that need data are not missed where none were given: the report says that anyway.
    """
    ran = [run.code for run in report.rules if run.ran]
    if any(run.reason == NOT_SELECTED for run in report.rules):
        names = f", {enumerated(ran)}" if 0 < len(ran) <= NAMED else ""
        return f"by the {counted(len(ran), 'rule')} that ran{names}"
    missed = [run.code for run in report.rules if not run.ran] if report.data is not None else []
    if missed:
        return f"by the {counted(len(ran), 'rule')} that ran; {enumerated(missed)} could not"
    return ""


def skipped_lines(report: Report, width: int) -> list[Line]:
    """Rules that were asked for and did not run, by reason."""
    reasons: dict[str, list[str]] = {}
    for run in report.rules:
        if not run.ran and run.reason != NOT_SELECTED:
            reasons.setdefault(run.reason, []).append(run.code)
    lines: list[Line] = []
    for reason, codes in reasons.items():
        text = f"{enumerated(codes)} did not run: {reason}."
        lines += paragraph(text, width, mark=Span("· ", "quiet"))
    return lines
