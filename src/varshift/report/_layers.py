"""The norms in a table with bars, and the noise sites in another."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from varshift.report._levels import excess, style_of
from varshift.report._page import Line, Span, columns, heading, paragraph
from varshift.report._rows import MeasuredFigures
from varshift.report._words import counted, figure, module_name, place, ratio, shortened, site_name

if TYPE_CHECKING:
    from varshift.report._report import Report
    from varshift.report._rows import LayerRow, NoiseRow

SHOWN = 20
WIDEST_BAR = 31
LARGEST_SCALE = 16


def layers_section(report: Report, width: int, *, full: bool) -> list[Line]:
    """One line for each measured norm; the worst ones only, unless all are asked for.

    Without measurements the table shows what was predicted.
    """
    measured = [row for row in report.layers if row.reached and row.measured is not None]
    if all(row.ratio is None for row in measured):
        return _predicted_section(report, width, full=full)
    shown = measured
    if not full and len(measured) > SHOWN:
        shown = _worst(measured)
    scale = _scale(measured)
    note = "deployed over learned, 1 is healthy"
    if len(shown) < len(measured):
        note = f"the {len(shown)} worst of {len(measured)}, in order of execution; {note}"
    lines = heading("Norms", width, note)
    table = _table(shown, width, scale)
    lines += table
    explained = (
        f"bar: ratio on a logarithmic scale, 1 in its middle, {scale} and 1/{scale} at its ends. "
        f"control: the ratio after recalibrating{' without noise' if report.noises else ''}, what depth and "
        "small batches do alone."
    )
    if any(span.text == "local" for span in table[0]):
        explained += " local: variance without noise over variance with it."
    if any(span.text == "predicted" for span in table[0]):
        explained += " predicted: the ratio that weights and statistics alone let expect."
    lines += paragraph(explained, width, style="quiet")
    unreached = [row.name for row in report.layers if not row.reached]
    if unreached:
        named = ", ".join(module_name(name) for name in unreached[:5])
        more = f" and {len(unreached) - 5} more" if len(unreached) > 5 else ""
        lines += paragraph(f"Not reached by the data: {named}{more}.", width, style="warning")
    return lines


def _predicted_section(report: Report, width: int, *, full: bool) -> list[Line]:
    rows = [
        replace(row, measured=MeasuredFigures(ratio=row.predicted_ratio))
        for row in report.layers
        if row.predicted_ratio is not None
    ]
    if not rows:
        return []
    shown = rows
    if not full and len(rows) > SHOWN:
        shown = _worst(rows)
    scale = _scale(rows)
    some = f"the {len(shown)} worst of {len(rows)}, " if len(shown) < len(rows) else ""
    lines = heading("Norms, predicted", width, f"{some}deployed over learned, 1 is healthy")
    lines += _table(shown, width, scale, ("ratio", "bar"))
    text = (
        f"Nothing was measured: the ratios follow from the weights and from the statistics of the norms. "
        f"bar: ratio on a logarithmic scale, 1 in its middle, {scale} and 1/{scale} at its ends."
    )
    return lines + paragraph(text, width, style="quiet")


def _worst(rows: list[LayerRow]) -> list[LayerRow]:
    """The rows that are worst off, in their order."""
    worst = {row.id for row in sorted(rows, key=_gravity, reverse=True)[:SHOWN]}
    return [row for row in rows if row.id in worst]


def _gravity(row: LayerRow) -> float:
    value = excess(row)
    return math.inf if value is None else value


def _scale(rows: list[LayerRow]) -> int:
    """The factor at a bar's ends: the smallest power of two that holds every shift."""
    largest = max((row.shift or 1.0 for row in rows), default=1.0)
    scale = 2
    while scale < largest and scale < LARGEST_SCALE:
        scale *= 2
    return scale


_TITLES = {
    "moving": 9,
    "real": 9,
    "ratio": 7,
    "bar": 0,
    "control": 7,
    "local": 7,
    "predicted": 9,
}


def _table(rows: list[LayerRow], width: int, scale: int, titles: tuple[str, ...] = ()) -> list[Line]:
    widths = {title: cells for title, cells in _TITLES.items() if not titles or title in titles}
    if titles or all(row.predicted_ratio is None for row in rows):
        widths.pop("predicted", None)
    if all(row.noise is None for row in rows):
        widths.pop("local", None)
    for title in ("predicted", "local", "moving"):  # a narrow page goes without them
        if _room(widths, width) < 30:
            widths.pop(title, None)
    room = _room(widths, width)
    longest = max(len("norm"), *(len(module_name(row.name)) for row in rows))
    if room >= 70:
        widths["noise"] = max(len("noise"), min(24, max(len(_noise(row)) for row in rows)))
        room = _room(widths, width)
    name = min(longest, room - 9, max(14, (3 * room) // 5))
    bar = min(WIDEST_BAR, room - name)
    widths["bar"] = bar - 1 + bar % 2  # an odd number of cells has a middle
    table = [[Span("norm", "quiet"), *(Span("" if title == "bar" else title, "quiet") for title in widths)]]
    for row in rows:
        cells = _cells(row, scale, widths)
        table.append([Span(shortened(module_name(row.name), name), "code"), *(cells[key] for key in widths)])
    flush = [index for index, key in enumerate(widths, start=1) if key not in ("bar", "noise")]
    return columns(table, [name, *widths.values()], right=flush)


def _room(widths: dict[str, int], width: int) -> int:
    """What the name and the bar have to themselves: two indents and a blank after every column are taken."""
    return width - 2 - sum(widths.values()) - len(widths) - 1


def _cells(row: LayerRow, scale: int, widths: dict[str, int]) -> dict[str, Span]:
    style = style_of(excess(row))
    return {
        "moving": Span(figure(row.moving_var)),
        "real": Span(figure(row.real_var)),
        "ratio": Span(ratio(row.ratio), style),
        "bar": Span(ratio_bar(row.ratio, scale, widths["bar"]), style),
        "control": Span(ratio(row.control_ratio), "quiet"),
        "local": Span(ratio(row.local_ratio), "quiet"),
        "predicted": Span(ratio(row.predicted_ratio), "quiet"),
        "noise": Span(shortened(_noise(row), widths.get("noise", 5)), "quiet"),
    }


def _noise(row: LayerRow) -> str:
    if row.noise is None:
        return ""
    more = f" +{row.noise_count - 1}" if row.noise_count > 1 else ""
    return f"{site_name(row.noise)}{more}"


def ratio_bar(value: float | None, scale: float, width: int) -> str:
    """A bar from the middle of `width` cells to the ratio, on a logarithmic scale from 1/scale to scale."""
    half = width // 2
    if value is None or not math.isfinite(value) or value <= 0:
        return " " * half + "│" + " " * half
    length = math.log(value) / math.log(scale)
    halves = round(2 * half * min(1.0, abs(length)))
    cells = "█" * (halves // 2)
    if abs(length) > 1:
        cells = cells[:-1]
    if length >= 0:
        end = "▶" if length > 1 else "▌" if halves % 2 else ""
        return " " * half + "│" + f"{cells}{end}".ljust(half)
    end = "◀" if length < -1 else "▐" if halves % 2 else ""
    return f"{end}{cells}".rjust(half) + "│" + " " * half


def noises_section(report: Report, width: int, *, full: bool) -> list[Line]:
    """The noise sites and the norms they reach: without measurements the heart of the report."""
    if not report.noises or not (full or report.data is None):
        return []
    shown = report.noises if full else report.noises[:SHOWN]
    note = "" if len(shown) == len(report.noises) else f"the first {len(shown)} of {len(report.noises)}"
    lines = heading("Noise sites", width, note)
    kind = max(len(row.kind) for row in shown)
    room = width - 2 - kind - 6 - 9 - 5
    name = min(max(len(site_name(row.id)) for row in shown), max(12, room // 2))
    name = max(name, 4)
    to = max(12, room - name)
    head = ["site", "kind", "rate", "reaches", "nearest norm, and how" if to >= 21 else "nearest"]
    table = [[Span(title, "quiet") for title in head]]
    for row in shown:
        table.append(
            [
                Span(shortened(site_name(row.id), name), "code"),
                Span(row.kind),
                Span(figure(row.rate, 2)),
                Span(counted(row.reaches_count, "norm")),
                _nearest(row, to),
            ]
        )
    lines += columns(table, [name, kind, 6, 9, 0], right=(2, 3))
    return lines


_PATHS = {"direct": "directly", "weight": "through weights", "join": "through a sum", "none": ""}


def _nearest(row: NoiseRow, width: int) -> Span:
    if row.nearest is None:
        return Span("none", "good")
    how = _PATHS[row.path]
    if width - len(how) - 2 < 10:
        how = ""
    name = shortened(site_name(row.nearest), width - len(how) - 2)
    source = place(row.source)
    text = f"{name}, {how}" if how else name
    if source and len(text) + 2 + len(source) <= width:
        text = f"{text}  {source}"
    return Span(text)
