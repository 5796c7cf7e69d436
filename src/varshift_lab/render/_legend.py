"""Legends that cover nothing."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

Legend = tuple[list[Any], list[str]]  # handles and labels

LINE_INCHES = 0.19  # height of a line of a legend
ENTRY_INCHES = (0.55, 0.066)  # width of an entry: its mark, and each letter
MOST_BESIDE = 12  # entries below each other beside a panel
BESIDE_LETTERS = 22  # in a line of a legend beside a panel
BESIDE_INCHES = 1.2  # that a panel can spare for it


def place_legends(
    drawing: Drawing, grid: Any, panel_height: float, drawn: Sequence[tuple[Axes, Legend]]
) -> None:
    """One legend above the panels if all have the same, or the only one has a long one; else one beside each.

    Args:
        drawing: The figure; it grows by what the legends need.
        grid: Its grid, whose first row is for a legend above all panels.
        panel_height: Height of a panel in inches.
        drawn: The panels with their legends.
    """
    names = [labels for _, (_, labels) in drawn]
    rows = grid.nrows - 1
    alike = bool(names and names[0]) and all(labels == names[0] for labels in names)
    if alike and (len(drawn) > 1 or len(names[0]) > MOST_BESIDE):
        columns = max(1, min(len(names[0]), int(drawing.get_figwidth() / _width(names[0]))))
        inches = LINE_INCHES * math.ceil(len(names[0]) / columns) + 0.05
        drawing.set_figheight(drawing.get_figheight() + inches)
        grid.set_height_ratios((inches / panel_height, *[1.0] * rows))
        above = drawing.add_subplot(grid[0, :])
        above.set_axis_off()
        above.legend(*drawn[0][1], loc="center left", ncols=columns, borderaxespad=0.0)
        return
    grid.set_height_ratios((1e-6, *[1.0] * rows))
    widest = max((_beside(axes, *legend) for axes, legend in drawn), default=0.0)
    drawing.set_figwidth(drawing.get_figwidth() + grid.ncols * max(widest - BESIDE_INCHES, 0.0))


def _beside(axes: Axes, handles: list[Any], labels: list[str]) -> float:
    """Puts a legend beside a panel and returns about how wide it is, in inches."""
    if not labels:
        return 0.0
    columns = math.ceil(len(labels) / MOST_BESIDE)
    wrapped = [textwrap.fill(label, BESIDE_LETTERS) for label in labels]
    axes.legend(handles, wrapped, loc="upper left", bbox_to_anchor=(1.0, 1.0), ncols=columns)
    return columns * _width([line for label in wrapped for line in label.splitlines()])


def _width(labels: Sequence[str]) -> float:
    return ENTRY_INCHES[0] + ENTRY_INCHES[1] * max(map(len, labels))
