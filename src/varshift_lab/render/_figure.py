"""Figures, drawn with matplotlib."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from varshift_lab.render._legend import place_legends
from varshift_lab.render._panel import draw_panel, legend_of
from varshift_lab.render._points import image
from varshift_lab.render._values import Results
from varshift_lab.studies import Figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

PANEL_INCHES = (4.4, 3.0)
PICTURE_SHARE = 0.4  # width of a picture beside its axes, as a share of theirs
DOTS_PER_INCH = 160

_STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    "svg.hashsalt": "varshift",  # the same drawing is the same file
}


def draw(figure: Figure, results: Results) -> Drawing:
    """Draws a figure: means with their standard deviation over the seeds, the paper's points hollow.

    Raises:
        VarshiftError: If what a curve needs was not measured.
    """
    import matplotlib
    from matplotlib.figure import Figure as Drawing

    columns = max(1, min(figure.columns, len(figure.panels)))
    rows = math.ceil(len(figure.panels) / columns)
    width, height = PANEL_INCHES[0] * columns, PANEL_INCHES[1] * rows
    with matplotlib.rc_context(_STYLE):
        title = textwrap.fill(figure.title, int(width * 10.5))
        note = textwrap.fill(figure.note, int(width * 17))
        more = 0.25 + 0.2 * (title.count("\n") + 1) + 0.14 * (note.count("\n") + 1) * bool(note)
        drawing = Drawing(figsize=(width, height + more), layout="constrained", dpi=DOTS_PER_INCH)
        drawing.suptitle(title, x=0.01, ha="left", weight="bold", fontsize=11)
        grid = drawing.add_gridspec(rows + 1, columns)  # the first row is for a legend
        legends = []
        for place, panel in enumerate(figure.panels):
            row, column = divmod(place, columns)
            cell = grid[row + 1, column]
            if panel.picture is not None:
                inner = cell.subgridspec(1, 2, width_ratios=(PICTURE_SHARE, 1))
                _show(drawing.add_subplot(inner[0]), image(panel.picture, results))
                cell = inner[1]
            axes = drawing.add_subplot(cell)
            draw_panel(axes, panel, results)
            legends.append((axes, legend_of(axes, panel)))
        place_legends(drawing, grid, PANEL_INCHES[1], legends)
        if note:
            drawing.supxlabel(note, x=0.01, ha="left", fontsize=7.5, color="#555555")
        drawing.draw_without_rendering()  # fonts and layout are settled while the style holds
    return drawing


def _show(axes: Any, pixels: Any) -> None:
    axes.set_axis_off()
    if pixels is None:
        axes.text(0.5, 0.5, "missing", ha="center", va="center", transform=axes.transAxes, color="#888888")
        return
    axes.imshow(pixels, cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")


def save(drawing: Drawing, path: Path, form: str) -> None:
    """Writes a drawing as ``png`` or ``svg``, without the date: the same figures give the same file."""
    import matplotlib

    metadata: dict[str, Any] = {"Date": None} if form == "svg" else {"Software": None}
    with matplotlib.rc_context(_STYLE):
        drawing.savefig(path, format=form, metadata=metadata)
