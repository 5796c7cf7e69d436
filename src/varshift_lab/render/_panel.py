"""One pair of axes."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from varshift_lab.render._points import Points, points
from varshift_lab.render._values import Results
from varshift_lab.studies import Curve, Panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, told apart by all kinds of colour vision; yellow is left out, it is lost on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":")
PAPER = "paper"
MOST_MARKERS = 30  # on a curve; beyond, they would run into each other
MOST_LETTERS = 42  # of all names below an axis, side by side; beyond, they are slanted
MOST_NAMES = 30  # below an axis; beyond, some are left out
BAND = 0.18  # opacity of a band


def draw_panel(axes: Axes, panel: Panel, results: Results) -> None:
    """Draws the curves of a panel.

    Raises:
        VarshiftError: If what a curve needs was not measured.
    """
    drawn = [(curve, points(curve, results)) for curve in panel.curves]
    names = _names([found for _, found in drawn], always=panel.kind == "bars")
    for place, (curve, found) in enumerate(drawn):
        where = _where(found, names)
        label = _label(curve, found)
        colour = COLOURS[place % len(COLOURS)]
        if panel.kind == "bars":
            width = 0.8 / len(drawn)
            where = [x + (place - (len(drawn) - 1) / 2) * width for x in where]
            _bars(axes, where, found, width, colour, label)
        elif panel.kind == "points":
            if names is not None:  # side by side, where several stand at one name
                where = [x + 0.12 * (place - (len(drawn) - 1) / 2) for x in where]
            _points(axes, where, found, place, colour, label)
        else:
            _line(axes, where, found, place, colour, label, log=panel.log_y)
        # On a bar its own colour would not be seen.
        fill, edge = ("white", "#222222") if panel.kind == "bars" else ("none", colour)
        _paper(axes, where, curve.paper, _marker(place), fill, edge)
    _finish(axes, panel, drawn, names)


def legend_of(axes: Axes, panel: Panel) -> tuple[list[Any], list[str]]:
    """Handles and labels for a legend, the paper's once and last; none where it would repeat the axes."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) == 1 and (labels[0] in panel.y_label or labels[0] in panel.title):
        return [], []
    kept = [(handle, label) for handle, label in zip(handles, labels, strict=True) if label != PAPER]
    if len(kept) < len(labels):
        from matplotlib.lines import Line2D

        hollow = Line2D([], [], linestyle="", marker="o", markerfacecolor="none", markeredgecolor="#444444")
        kept.append((hollow, PAPER))
    return [handle for handle, _ in kept], [label for _, label in kept]


def _marker(place: int) -> str:
    # Where the colours begin again the markers do not, so that no two curves look alike.
    return MARKERS[(place + place // len(COLOURS)) % len(MARKERS)]


def _label(curve: Curve, found: Points) -> str:
    if found.count == found.wanted or not found.wanted:
        return curve.label
    return f"{curve.label} ({found.count} of {found.wanted} seeds)"


def _names(drawn: Sequence[Points], *, always: bool) -> list[str] | None:
    """Names below the axis, in the order of their first mention; None where places are numbers."""
    places = list(dict.fromkeys(x for found in drawn for x in found.x))
    if not always and all(isinstance(x, (int, float)) for x in places):
        return None
    if all(isinstance(x, (int, float)) for x in places):
        places.sort(key=float)
    return [_name(x) for x in places]


def _name(x: float | str) -> str:
    return x if isinstance(x, str) else f"{x:g}"


def _where(found: Points, names: list[str] | None) -> list[float]:
    if names is None:
        return [float(x) for x in found.x]
    place = {name: float(index) for index, name in enumerate(names)}
    return [place[_name(x)] for x in found.x]


def _line(
    axes: Axes, where: list[float], found: Points, place: int, colour: str, label: str, *, log: bool
) -> None:
    where = where[: len(found.mean)]
    marker = _marker(place) if len(where) <= MOST_MARKERS else ""
    dash = DASHES[(place // len(COLOURS)) % len(DASHES)] if marker else DASHES[place % len(DASHES)]
    axes.plot(where, found.mean, color=colour, marker=marker, linestyle=dash, label=label)
    if any(not math.isnan(value) for value in found.deviation):
        spans = [0.0 if math.isnan(value) else value for value in found.deviation]
        low = [mean - span for mean, span in zip(found.mean, spans, strict=True)]
        if log:  # a band that reaches zero would have no lower edge
            low = [max(edge, mean / 10) for edge, mean in zip(low, found.mean, strict=True)]
        high = [mean + span for mean, span in zip(found.mean, spans, strict=True)]
        axes.fill_between(where, low, high, color=colour, alpha=BAND, linewidth=0)


def _points(axes: Axes, where: list[float], found: Points, place: int, colour: str, label: str) -> None:
    axes.errorbar(
        where[: len(found.mean)],
        found.mean,
        yerr=_spans(found),
        fmt=_marker(place),
        color=colour,
        capsize=2.5,
        label=label,
    )


def _bars(axes: Axes, where: list[float], found: Points, width: float, colour: str, label: str) -> None:
    axes.bar(
        where[: len(found.mean)],
        found.mean,
        width=width * 0.92,
        yerr=_spans(found),
        color=colour,
        error_kw={"ecolor": "#333333", "elinewidth": 1.0, "capsize": 2.0},
        label=label,
    )


def _spans(found: Points) -> list[float] | None:
    if all(math.isnan(value) for value in found.deviation):
        return None
    return [0.0 if math.isnan(value) else value for value in found.deviation]


def _paper(
    axes: Axes, where: list[float], stated: Sequence[float | None], marker: str, fill: str, edge: str
) -> None:
    known = [(x, y) for x, y in zip(where, stated, strict=False) if y is not None]
    if not known:
        return
    axes.plot(
        *zip(*known, strict=True),
        linestyle="",
        marker=marker,
        markersize=7,
        markerfacecolor=fill,  # hollow, so that what has been measured stays in sight beneath
        markeredgecolor=edge,
        markeredgewidth=1.4,
        label=PAPER,
        zorder=4,
    )


def _finish(axes: Axes, panel: Panel, drawn: Sequence[tuple[Curve, Points]], names: list[str] | None) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(textwrap.fill(panel.title, 52))
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(textwrap.fill(panel.y_label, 36))
    if panel.log_y:
        axes.set_yscale("log")
    if names is not None:
        step = math.ceil(len(names) / MOST_NAMES) or 1
        shown = range(0, len(names), step)
        slanted = sum(len(names[place]) + 2 for place in shown) > MOST_LETTERS
        axes.set_xticks(
            list(shown),
            [names[place] for place in shown],
            rotation=40 if slanted else 0,
            ha="right" if slanted else "center",
            rotation_mode="anchor",
        )
        axes.margins(x=0.03)
    elif all(float(x).is_integer() for _, found in drawn for x in found.x):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if not any(found.count for _, found in drawn):
        axes.text(0.5, 0.5, "nothing measured yet", transform=axes.transAxes, ha="center", color="#888888")
