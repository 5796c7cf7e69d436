"""The findings on the page, one group for each rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from varshift.report._evidence import evidence_words
from varshift.report._page import Line, Span, heading, line, paragraph, text_of
from varshift.report._words import counted, figure, finding_name, percent, place, rule_title, site_name
from varshift.rules import Cure, Finding, FindingSite, cost_in

if TYPE_CHECKING:
    from varshift.probe import Gap
    from varshift.report._report import Report

SHOWN = 3
NAMED = 6


def findings_section(report: Report, width: int, *, full: bool) -> list[Line]:
    """Every rule that fired: its sites with file and line, what it costs, and what cures it."""
    if not report.findings:
        return []
    lines = heading("Findings", width)
    for code, group in report.findings_by_code.items():
        lines += [*_group(code, group, report.gap, width, full=full), ()]
    return lines[:-1]


def _group(code: str, group: tuple[Finding, ...], gap: Gap | None, width: int, *, full: bool) -> list[Line]:
    severity = group[0].severity
    sites = len({site.id for finding in group for site in finding.sites})
    confidence = " or ".join(dict.fromkeys(finding.confidence for finding in group))
    cost = cost_words(group[0], gap)
    title = line(
        Span("  "),
        Span(severity, severity),
        Span(" "),
        Span(rule_title(code), "strong"),
        Span(f"  {counted(sites, 'site')}, {confidence}", "quiet"),
    )
    fits = len(text_of(title)) + 2 + len(cost) <= width
    lines = [(*title, Span(f", {cost}"))] if cost and fits else [title]
    if cost and not fits:
        lines += paragraph(cost, width, indent=4)
    shown = group if full else group[:SHOWN]
    for finding in shown:
        lines += _finding(finding, width, full=full, mark=finding.severity != severity)
    lines += _others([finding_name(finding) for finding in group[len(shown) :]], width, indent=4)
    return lines + _cures(group, width)


def cost_words(finding: Finding, gap: Gap | None) -> str:
    """What a finding costs of the loss as deployed: ``costs 0.12 of 0.61 (20 %)``; empty where it costs none.

    Without a loss, how far it moves the outputs.
    """
    cost = finding.cost
    deployed = gap.states.get(gap.last) if gap else None
    step = gap.step(finding.step) if gap and finding.step else None
    if cost is None or gap is None or cost <= 0 or (step is not None and (step.delta or 0.0) < 0):
        return ""
    if gap.metric != "loss":
        return f"moves the outputs by {percent(cost)} (relative L2)"
    if deployed is None or deployed <= 0:
        return f"costs {figure(cost)} of the loss"
    whole = cost_in(gap, step.cause) if step else None
    if whole is not None and cost < whole.scale:
        return f"costs next to nothing of {figure(deployed)}"
    if cost >= deployed:  # the network was better still before, by a step that is a gain
        return f"costs {figure(cost)}, all of the loss of {figure(deployed)}"
    return f"costs {figure(cost)} of {figure(deployed)} ({100 * cost / deployed:.0f} %)"


def _finding(finding: Finding, width: int, *, full: bool, mark: bool) -> list[Line]:
    shown = finding.sites if full else finding.sites[:SHOWN]
    lines: list[Line] = []
    for site in shown:
        lines += _site(site, finding if mark and not lines else None, width)
    lines += _others([site_name(site.id) for site in finding.sites[len(shown) :]], width, indent=6)
    lines += paragraph(finding.message, width, indent=6)
    if full and (evidence := evidence_words(finding.evidence)):
        lines += paragraph(evidence, width, indent=6, style="quiet")
    return lines


def _site(site: FindingSite, marked: Finding | None, width: int) -> list[Line]:
    """A site with its class and its line of code; a finding that is milder than its group says so there."""
    where, source = site_name(site.id), place(site.source)
    cls = f" {site.cls}" if site.cls else ""
    pieces = [Span("    "), Span(where, "code"), Span(cls, "quiet")]
    if marked is not None:
        pieces.append(Span(f" ({marked.severity})", marked.severity))
    if source and sum(len(piece.text) for piece in pieces) + 2 + len(source) <= width:
        return [(*pieces, Span(f"  {source}", "quiet"))]
    return [tuple(pieces), *([line(Span(f"      {source}", "quiet"))] if source else [])]


def _others(rest: Sequence[str], width: int, *, indent: int) -> list[Line]:
    """``and 12 more: a, b, c and 9 others``."""
    if not rest:
        return []
    names = list(dict.fromkeys(rest))
    named = names if len(names) <= NAMED + 1 else names[:NAMED]
    more = f" and {len(names) - len(named)} others" if len(names) > len(named) else ""
    text = f"and {len(rest)} more: {', '.join(named)}{more}"
    return paragraph(text, width, indent=indent, hang=2, style="quiet")


def _cures(group: tuple[Finding, ...], width: int) -> list[Line]:
    # The findings of a group have the same cures, each with a target of its own.
    cures = {(cure.name, cure.safety): cure for finding in group for cure in finding.cures}
    lines: list[Line] = []
    for index, cure in enumerate(cures.values()):
        label = "cure: " if index == 0 else "  or: "
        lines += _cure(cure, label, width)
    return lines


def _cure(cure: Cure, label: str, width: int) -> list[Line]:
    tail = f"[{cure.safety}]"
    lines = paragraph(f"{cure.name} {tail}", width, indent=4, mark=Span(label, "quiet"))
    *head, last = lines
    *others, body = last
    style = "good" if cure.safety == "safe" else "warning"
    lines = [*head, (*others, Span(body.text.removesuffix(tail)), Span(tail, style))]
    if effect := effect_words(cure.measured):
        lines += paragraph(effect, width, indent=4 + len(label))
    return lines


def effect_words(measured: Mapping[str, Any] | None) -> str:
    """What a cure was measured to do, ``measured: the loss goes from 0.61 to 0.49 ± 0.01``, or nothing."""
    after = measured.get("after") if measured else None
    if measured is None or not isinstance(after, (int, float)):
        return ""
    before, error = measured.get("before"), measured.get("stderr")
    start = f"goes from {figure(before)} to" if isinstance(before, (int, float)) else "is then"
    error = f" ± {figure(error, 2)}" if isinstance(error, (int, float)) and error > 0 else ""
    metric = "loss" if measured.get("metric", "loss") == "loss" else "distance of the outputs"
    return f"measured: the {metric} {start} {figure(after)}{error}"
