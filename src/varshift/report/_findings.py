"""The findings on the page, one group for each rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from varshift.report._levels import excess
from varshift.report._page import Line, Span, heading, line, paragraph
from varshift.report._words import counted, figure, finding_name, place, rule_title, site_name
from varshift.rules import Cure, Finding, by_severity

if TYPE_CHECKING:
    from varshift.report._report import Report
    from varshift.report._rows import LayerRow

SHOWN = 3
NAMED = 6


def findings_section(report: Report, width: int, *, full: bool) -> list[Line]:
    """Every rule that fired: its sites with file and line, and what cures them."""
    if not report.findings:
        return []
    rows = {row.name: row for row in report.layers}
    lines = heading("Findings", width)
    for code, group in report.findings_by_code.items():
        worst_first = by_severity(sorted(group, key=lambda finding: _distance(rows, finding), reverse=True))
        lines += [*_group(code, worst_first, width, full=full), ()]
    return lines[:-1]


def _distance(rows: Mapping[str, LayerRow], finding: Finding) -> float:
    """How far from healthy the norm of a finding is, 0 where that is not known."""
    row = rows.get(finding.where) or rows.get(str(finding.evidence.get("norm")))
    return (excess(row) if row else None) or 0.0


def _group(code: str, group: tuple[Finding, ...], width: int, *, full: bool) -> list[Line]:
    severity = group[0].severity
    sites = len({site for finding in group for site in finding.sites})
    title = line(
        Span("  "),
        Span(severity, severity),
        Span(" "),
        Span(rule_title(code), "strong"),
        Span(f"  {counted(sites, 'site')}, {_confidences(group)}", "quiet"),
    )
    lines = [title]
    shown = group if full else group[:SHOWN]
    for finding in shown:
        lines += _finding(finding, width, full=full, mark=finding.severity != severity)
    lines += _others(group[len(shown) :], width)
    lines += _cures(group, width)
    return lines


def _confidences(group: tuple[Finding, ...]) -> str:
    return " or ".join(dict.fromkeys(finding.confidence for finding in group))


def _finding(finding: Finding, width: int, *, full: bool, mark: bool) -> list[Line]:
    where, source = finding_name(finding), place(finding.source)
    cls = f" {finding.cls}" if finding.cls else ""
    pieces = [Span("    "), Span(where, "code"), Span(cls, "quiet")]
    if mark:
        pieces.append(Span(f" ({finding.severity})", finding.severity))
    if source and 4 + len(where) + len(cls) + 2 + len(source) <= width:
        lines = [(*pieces, Span(f"  {source}", "quiet"))]
    else:
        lines = [tuple(pieces)]
        if source:
            lines.append(line(Span(f"      {source}", "quiet")))
    lines += paragraph(finding.message, width, indent=6)
    if full and len(finding.sites) > 1:
        names = ", ".join(site_name(site.id) for site in finding.sites)
        lines += paragraph(f"sites: {names}", width, indent=6, style="quiet")
    if full and finding.evidence:
        lines += paragraph(_evidence(finding), width, indent=6, style="quiet")
    return lines


def _evidence(finding: Finding) -> str:
    return ", ".join(f"{key} {_value(value)}" for key, value in finding.evidence.items())


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return figure(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_value(item) for item in value)}]"
    if isinstance(value, dict):
        return f"({', '.join(f'{key} {_value(item)}' for key, item in value.items())})"
    return "-" if value is None else str(value)


def _others(rest: tuple[Finding, ...], width: int) -> list[Line]:
    if not rest:
        return []
    names = list(dict.fromkeys(finding_name(finding) for finding in rest))
    named = names if len(names) <= NAMED + 1 else names[:NAMED]
    more = f" and {len(names) - len(named)} others" if len(names) > len(named) else ""
    return paragraph(
        f"and {len(rest)} more: {', '.join(named)}{more}", width, indent=4, hang=2, style="quiet"
    )


def _cures(group: tuple[Finding, ...], width: int) -> list[Line]:
    # The sites of a group have the same cures, each with a target of its own.
    cures = {(cure.name, cure.safety): cure for finding in group for cure in finding.cures}
    lines: list[Line] = []
    for index, cure in enumerate(cures.values()):
        label = "cure: " if index == 0 else "  or: "
        lines += _cure(cure, label, width)
    return lines


def _cure(cure: Cure, label: str, width: int) -> list[Line]:
    lines = paragraph(f"{cure.name} [{cure.safety}]", width, indent=4, mark=Span(label, "quiet"))
    style = "good" if cure.safety == "safe" else "warning"
    *head, last = lines
    spans = list(last)
    tail = f"[{cure.safety}]"
    body = spans[-1].text.removesuffix(tail)
    return [*head, (*spans[:-1], Span(body), Span(tail, style))]
