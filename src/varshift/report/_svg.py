"""A picture of the report in a terminal, through rich."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING

from varshift._errors import VarshiftError
from varshift._printable import printable
from varshift.report._terminal import print_report

if TYPE_CHECKING:
    from varshift.report._report import Report

WIDTH = 100
FONTS = "DejaVu Sans Mono, Menlo, Consolas, monospace"


def render(report: Report, *, width: int = WIDTH) -> str:
    """The report as an SVG that refers to nothing outside itself.

    Raises:
        VarshiftError: If rich is not installed.
    """
    try:
        from rich.console import Console
    except ImportError:
        raise VarshiftError('a picture of the report needs rich: pip install "varshift[cli]".') from None
    console = Console(
        record=True,
        width=width,
        file=io.TextIOWrapper(io.BytesIO(), encoding="utf-8"),
        force_terminal=True,
        color_system="truecolor",
        no_color=False,
    )
    print_report(report, console)
    picture = console.export_svg(title=printable(f"varshift check {report.model.target}"))
    # The font that rich names lies on a server; the text keeps its layout in any monospaced font.
    picture = re.sub(r"@font-face\s*\{[^}]*\}\s*", "", picture)
    return re.sub(r"font-family: *Fira Code[^;]*;", f"font-family: {FONTS};", picture)
