"""The report in a terminal's colours, through rich."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from varshift.report._layout import page

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from varshift.report._report import Report

WIDEST = 140

STYLES = {
    "plain": "",
    "strong": "bold",
    "quiet": "dim",
    "code": "cyan",
    "error": "bold red",
    "warning": "yellow",
    "advice": "blue",
    "good": "green",
    "rule": "dim",
}


def renderables(
    report: Report, *, width: int, full: bool = False, ascii_only: bool = False
) -> Iterable[Text]:
    """The lines of the report as rich texts."""
    from rich.text import Text

    for content in page(report, width=min(width, WIDEST), full=full, ascii_only=ascii_only):
        yield Text.assemble(
            *((span.text, STYLES[span.style]) for span in content), no_wrap=True, overflow="ignore"
        )


def print_report(report: Report, console: Console, *, full: bool = False) -> None:
    """Prints the report as wide as the console, in characters that it can show."""
    lines = renderables(
        report, width=console.width, full=full, ascii_only=not (console.encoding or "").startswith("utf")
    )
    for text in lines:
        text.rstrip()
        console.print(text, soft_wrap=True, highlight=False)
