"""What ran and what did not, in words."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from varshift.evidence import NOT_NEEDED
from varshift.report._page import Line, Span, paragraph
from varshift.report._words import counted, enumerated
from varshift.rules import NOT_SELECTED, RuleRun

if TYPE_CHECKING:
    from varshift.report._report import Report

NAMED = 4

# What a provider of evidence says where the user did not pass what it is made from, see `Provider.obstacle`.
_NOT_PASSED = re.compile(r"\bno [\w ]+ (was|were) given\b")


def not_needed(report: Report, evidence: str) -> bool:
    """Whether evidence of this kind was left out because no rule that was asked for needs it."""
    return any(run.name == evidence and run.reason == NOT_NEEDED for run in report.evidence)


def watched_only(report: Report) -> bool:
    """Whether the report is that of a training that was watched, and no check."""
    return report.history is not None and not report.evidence


def ran_in_words(report: Report) -> str:
    """Which rules the report rests on, where not all of them ran that could; empty where they did.

    Rules that need what the user did not pass (data, a second loader, an optimiser) are not missed.
    """
    ran = [run.code for run in report.rules if run.ran]
    if any(run.reason == NOT_SELECTED for run in report.rules):
        names = f", {enumerated(ran)}" if 0 < len(ran) <= NAMED else ""
        return f"by the {counted(len(ran), 'rule')} that ran{names}"
    if missed := [run.code for run in report.rules if _missed(run)]:
        return f"by the {counted(len(ran), 'rule')} that ran; {enumerated(missed)} could not"
    return ""


def _missed(run: RuleRun) -> bool:
    """Whether a rule that was asked for could not run although everything for it was passed."""
    return not run.ran and run.reason != NOT_SELECTED and not _NOT_PASSED.search(run.reason)


def skipped_lines(report: Report, width: int, *, full: bool = False) -> list[Line]:
    """Rules that were asked for and did not run, by reason; all of them, or those that could have run."""
    reasons: dict[str, list[str]] = {}
    for run in report.rules:
        if _missed(run) or (full and not run.ran and run.reason != NOT_SELECTED):
            reasons.setdefault(run.reason, []).append(run.code)
    lines: list[Line] = []
    for reason, codes in reasons.items():
        text = f"{enumerated(codes)} did not run: {reason}."
        lines += paragraph(text, width, mark=Span("· ", "quiet"))
    return lines
