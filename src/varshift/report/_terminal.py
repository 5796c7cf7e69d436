"""The report in a terminal's colours, through rich."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from varshift._printable import printable
from varshift.report._layout import page
from varshift.report._page import Line, to_ascii

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
    return map(_text, page(report, width=min(width, WIDEST), full=full, ascii_only=ascii_only))


def print_report(report: Report, console: Console, *, full: bool = False) -> None:
    """Prints the report as wide as the console, in characters that it can show."""
    print_lines(page(report, width=min(console.width, WIDEST), full=full), console)


def print_lines(lines: Iterable[Line], console: Console) -> None:
    """Prints lines of styled spans in colour, in characters that the console can show."""
    ascii_only = not (console.encoding or "").startswith("utf")
    for content in lines:
        text = _text(to_ascii(content) if ascii_only else content)
        text.rstrip()
        console.print(text, soft_wrap=True, highlight=False)


def _text(content: Line) -> Text:
    from rich.text import Text

    return Text.assemble(
        *((printable(span.text), STYLES[span.style]) for span in content), no_wrap=True, overflow="ignore"
    )
