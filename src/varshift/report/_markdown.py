"""The report as Markdown: for a pull request, or the summary page of a job."""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING

from varshift._printable import printable
from varshift.report._findings import effect_words
from varshift.report._summary import sentences
from varshift.report._words import finding_name, place, rule_title

if TYPE_CHECKING:
    from varshift.report._report import Report

_MARKS_IN_CODE = re.compile(r"[\\`*_\[\]~@!]")
_MARKS = re.compile(r"([\\`*_{}\[\]<>#|~@!])")


def render(report: Report) -> str:
    """Verdict, a table of the findings, what cures them, and what could not be seen."""
    first, *others = sentences(report)
    lines = [f"## varshift: {_plain(report.model.target)}", "", f"**{_plain(first)}**", ""]
    lines += [text for sentence in others for text in (_plain(sentence), "")]
    if report.findings:
        lines += ["| | Rule | Where | Line | What |", "| --- | --- | --- | --- | --- |"]
    for finding in report.findings:
        more = f" and {len(finding.sites) - 1} more" if len(finding.sites) > 1 else ""
        cells = (
            finding.severity,
            _plain(rule_title(finding.code)),
            f"{_code(finding_name(finding))}{more}",
            _code(place(finding.source)),
            _plain(finding.message),
        )
        lines.append(f"| {' | '.join(cells)} |")
    # The findings of a rule have the same cures, each with a target of its own.
    for code, group in report.findings_by_code.items():
        cures = {(cure.name, cure.safety): cure for finding in group for cure in finding.cures}
        if cures:
            lines += ["", f"Cures of {_plain(rule_title(code))}:", ""]
        for cure in cures.values():
            effect = f"; {effect_words(cure.measured)}" if effect_words(cure.measured) else ""
            lines.append(f"- {_plain(cure.name)} ({cure.safety}{_plain(effect)})")
    if report.limits:
        lines += ["", "What could not be seen:", "", *(f"- {_plain(limit)}" for limit in report.limits)]
    if report.repeat:
        lines += ["", f"Repeat: {_code(report.repeat)}"]
    return "\n".join(lines).rstrip("\n") + "\n"


def _plain(text: str) -> str:
    """Text that Markdown shows as it is; a name cannot make a link, a heading, a mention or a cell."""
    return _MARKS.sub(r"\\\1", printable(text))


def _code(text: str) -> str:
    """Text in the type of code, through HTML: between backticks a bar would still end the cell of a table."""
    shown = html.escape(printable(text)).replace("|", "&#124;")
    return f"<code>{_MARKS_IN_CODE.sub(_entity, shown)}</code>" if text else ""


def _entity(match: re.Match[str]) -> str:
    return f"&#{ord(match[0])};"
