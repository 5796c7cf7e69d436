"""One line for each finding, as compilers write them: editors and people jump to the place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from varshift._printable import printable
from varshift.report._summary import counts
from varshift.report._words import finding_words, place, rule_title

if TYPE_CHECKING:
    from varshift.report._report import Report


def render(report: Report) -> str:
    """The findings, worst first, and how many there are."""
    lines = []
    for finding in report.findings:
        where = place(finding.source) or report.model.target
        lines.append(f"{where}: {finding.severity} {rule_title(finding.code)}: {finding_words(finding)}")
    lines.append(counts(report))
    return "".join(f"{printable(text)}\n" for text in lines)
