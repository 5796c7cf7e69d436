"""The report as a self-contained piece of HTML for notebooks."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from varshift._printable import printable
from varshift.report._layout import page
from varshift.report._page import Line, Span

if TYPE_CHECKING:
    from varshift.report._report import Report

WIDTH = 110

# Readable on white and on dark grey alike, for a notebook's theme cannot be asked for; bare text has the
# notebook's own colour.
COLOURS = {
    "error": "#d9453a",
    "warning": "#a8720a",
    "advice": "#2f7fc4",
    "good": "#2c8a57",
    "code": "#2f7fc4",
}
_STYLES = {
    **{style: f"color:{colour}" for style, colour in COLOURS.items()},
    "error": f"color:{COLOURS['error']};font-weight:bold",
    "strong": "font-weight:bold",
    "quiet": "opacity:.72",
    "rule": "opacity:.45",
}


def fragment(report: Report, *, width: int = WIDTH, full: bool = False) -> str:
    """The report as one ``pre`` element without scripts, style sheets or links."""
    body = "\n".join(_line(content) for content in page(report, width=width, full=full))
    style = (
        "white-space:pre;overflow-x:auto;line-height:1.25;font-size:13px;margin:0;"
        "font-family:ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace"
    )
    return f'<pre class="varshift-report" style="{style}">{body}</pre>'


def render(report: Report) -> str:
    """The report as a whole HTML document in light and dark."""
    title = escape(printable(f"varshift: {report.model.target}"))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"><meta name="color-scheme" content="light dark">'
        f"<title>{title}</title></head>\n<body>{fragment(report, full=True)}</body></html>\n"
    )


def _line(content: Line) -> str:
    return "".join(_span(span) for span in content).rstrip()


def _span(span: Span) -> str:
    style = _STYLES.get(span.style)
    text = escape(printable(span.text))
    return f'<span style="{style}">{text}</span>' if style and span.text.strip() else text
