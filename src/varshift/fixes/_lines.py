"""The list of changes laid out as lines: the same in plain text and in a terminal's colours."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from varshift.fixes._edit import Change
from varshift.report import (
    Line,
    Report,
    Span,
    counted,
    figure,
    line,
    paragraph,
    percent,
    place,
    rule_title,
    shortened,
    site_name,
)
from varshift.rules import Safety

if TYPE_CHECKING:
    from varshift.fixes._cured import Cured, Failure

SHOWN = 8
_NAMED = 44  # columns for the name of a place


def lines_of(cured: Cured, *, width: int = 100, full: bool = False) -> list[Line]:
    """The list of changes, what is gone, what is left and why.

    Args:
        cured: The treated network.
        width: Columns to fill.
        full: Whether to show every place instead of the first eight of each cure.
    """
    if not cured.changes and not cured.failures:
        return [
            line(Span("Nothing to cure: no change.", "good")),
            *_advice(cured, width),
            *_notes(cured, width),
        ]
    lines = [line(Span(_summary(cured), "strong"))]
    for (finding, cure), group in groupby(cured.changes, lambda change: (change.finding, change.cure)):
        lines += [(), *_group(finding, cure, list(group), width, full=full)]
    if cured.failures:
        lines += [(), line(Span("Not cured", "warning"))]
        for failure in cured.failures:
            lines += _failure(failure, width)
    tail = [*_gone(cured, width), *effect_lines(cured.before, cured.after, width), *_notes(cured, width)]
    return [*lines, *([(), *tail] if tail else [])]


def _summary(cured: Cured) -> str:
    places = len({change.site for change in cured.changes})
    changes = counted(len(cured.changes), "change")
    text = f"{changes} at {counted(places, 'place')}" if places != len(cured.changes) else changes
    gone = len({finding.code for finding in cured.gone})
    if gone:
        text += f", {counted(gone, 'rule')} no longer {'fires' if gone == 1 else 'fire'}"
    if cured.failures:
        text += f", {len(cured.failures)} not cured"
    return f"{text}."


def _group(finding: str, cure: str, changes: list[Change], width: int, *, full: bool) -> list[Line]:
    safety = _safety(cure)
    lines = [
        line(
            Span(f"{rule_title(finding)}: " if finding else "", "strong"),
            Span(cure, "code"),
            Span(f" [{safety}]" if safety else "", "good" if safety == "safe" else "warning"),
            Span(f"  {counted(len(changes), 'place')}", "quiet"),
        )
    ]
    for why, group in groupby(changes, lambda change: change.why):
        if why:
            lines += paragraph(why, width)
        lines += _places(list(group), width, full=full)
    return lines


def _safety(cure: str) -> Safety | None:
    from varshift.fixes._remedy import REMEDIES

    return REMEDIES[cure].safety if cure in REMEDIES else None


def _places(changes: list[Change], width: int, *, full: bool) -> list[Line]:
    shown = changes if full or len(changes) <= SHOWN + 1 else changes[:SHOWN]
    names = [shortened(site_name(change.site), _NAMED) for change in shown]
    room = max(map(len, names))
    lines: list[Line] = []
    for name, change in zip(names, shown, strict=True):
        lines += _place(name.ljust(room), change, width)
    if len(shown) < len(changes):
        lines.append(line(Span(f"    and {counted(len(changes) - len(shown), 'more place')}", "quiet")))
    return lines


def _place(name: str, change: Change, width: int) -> list[Line]:
    """A place, what was and what is there, and its line of code, on one line where they fit."""
    before, after = change.before or "nothing", change.after or "removed"
    source = place(change.source)
    spans = [Span("    "), Span(name, "code"), Span("  "), Span(before), Span(" → "), Span(after, "good")]
    length = sum(len(span.text) for span in spans)
    lines = [tuple(spans)]
    if length > width:
        text = f"{before} → {after}"
        lines = [line(Span("    "), Span(name.rstrip(), "code")), *paragraph(text, width, indent=6, hang=2)]
        length = width
    if source and length + 2 + len(source) <= width:
        return [(*lines[0], Span(f"  {source}", "quiet"))]
    return [*lines, *([line(Span(f"      {source}", "quiet"))] if source else [])]


def _failure(failure: Failure, width: int) -> list[Line]:
    title = rule_title(failure.finding) if failure.finding else "As asked for"
    where = [site_name(site) for site in failure.sites[:3]]
    more = f" and {len(failure.sites) - 3} more" if len(failure.sites) > 3 else ""
    at = f" at {', '.join(where)}{more}" if where else ""
    lines = paragraph(f"{title}{at}", width, hang=2, style="strong")
    for code, reason in failure.tried:
        lines += paragraph(reason, width, indent=4, mark=Span(f"{code}: ", "code"))
    if not failure.tried:
        lines += paragraph("no safe cure can be carried out here.", width, indent=4)
    if failure.unsafe:
        options = ", ".join(failure.unsafe)
        lines += paragraph(
            f"{options} (the network has to be trained again afterwards)",
            width,
            indent=4,
            mark=Span("with unsafe: ", "quiet"),
        )
    for index, name in enumerate(failure.by_hand):
        lines += paragraph(
            name, width, indent=4, mark=Span("by hand: " if index == 0 else "     or: ", "quiet")
        )
    return lines


def _gone(cured: Cured, width: int) -> list[Line]:
    codes = dict.fromkeys(finding.code for finding in cured.gone)
    if not codes:
        return []
    return paragraph(f"{', '.join(map(rule_title, codes))}.", width, indent=0, mark=Span("Gone: ", "good"))


def effect_lines(before: Report | None, after: Report | None, width: int) -> list[Line]:
    """The loss as deployed before and after, where both checks measured it."""
    first, second = _deployed(before), _deployed(after)
    if first is None or second is None:
        return []
    text = f"Loss in evaluation: {figure(first[0])} before, {figure(second[0])} after"
    if first[1] is not None and second[1] is not None:
        text += f"; accuracy {percent(first[1])} before, {percent(second[1])} after"
    return paragraph(f"{text} (on the batches of the check).", width, indent=0)


def _deployed(report: Report | None) -> tuple[float, float | None] | None:
    gap = report.gap if report is not None else None
    loss = gap.states.get("eval") if gap is not None and gap.metric == "loss" else None
    if gap is None or loss is None:
        return None
    return loss, gap.accuracy.get("eval") if gap.accuracy else None


def _advice(cured: Cured, width: int) -> list[Line]:
    """What the check said that is no fault."""
    codes = dict.fromkeys(finding.code for finding in cured.before.findings) if cured.before else {}
    if not codes:
        return []
    text = (
        f"The check has advice only ({', '.join(codes)}), which is treated where it is selected by its code."
    )
    return paragraph(text, width, indent=0)


def _notes(cured: Cured, width: int) -> list[Line]:
    mark = Span("· ", "quiet")
    return [content for text in cured.notes for content in paragraph(text, width, indent=0, mark=mark)]
