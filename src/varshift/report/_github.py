"""Annotations of GitHub Actions: workflow commands that show findings beside the lines of a pull request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from varshift._printable import printable
from varshift.report._anchors import anchor_of, aside
from varshift.report._words import cure_words, finding_words, rule_title

if TYPE_CHECKING:
    from varshift.report._report import Report

_LEVELS = {"error": "error", "warning": "warning", "advice": "notice"}


def render(report: Report) -> str:
    """One command for each finding, worst first: GitHub shows ten errors and ten warnings of a step."""
    lines = []
    for finding in report.findings:
        anchor = anchor_of(report, finding)
        place = {"file": anchor.path, "line": anchor.line, "endLine": anchor.line}
        settings = {"title": f"varshift: {rule_title(finding.code)}", **place}
        given = ",".join(f"{key}={_parameter(str(value))}" for key, value in settings.items())
        first = f"{finding_words(finding)}{aside(finding, anchor)}"
        text = "%0A".join(_data(words) for words in (first, *map(cure_words, finding.cures)))
        lines.append(f"::{_LEVELS[finding.severity]} {given}::{text}\n")
    return "".join(lines)


def _data(text: str) -> str:
    return printable(text).replace("%", "%25")


def _parameter(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
