"""Lines of styled spans: what the sections of a report are laid out in.

The terminal gives the spans colours through rich, a notebook through HTML, and plain text leaves them as they
are, so that all of them say the same thing and the core needs no other package to print a report.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from varshift._printable import printable

Style = Literal["plain", "strong", "quiet", "code", "error", "warning", "advice", "good", "rule"]

# Stand-ins where the output cannot show line-drawing characters.
_ASCII = str.maketrans(
    {
        "─": "-",
        "│": "|",
        "█": "#",
        "▌": "=",
        "▐": "=",
        "◀": "<",
        "▶": ">",
        "◆": "*",
        "●": "*",
        "·": "-",
        "…": "~",
        "±": "+-",
    }
)


class Span(NamedTuple):
    """A piece of a line in one style."""

    text: str
    style: Style = "plain"


Line = tuple[Span, ...]


def line(*pieces: str | Span) -> Line:
    """A line of spans; bare text is plain."""
    return tuple(Span(piece) if isinstance(piece, str) else piece for piece in pieces)


def text_of(content: Line) -> str:
    """The bare text of a line, without trailing blanks."""
    return printable("".join(span.text for span in content)).rstrip()


def heading(title: str, width: int, note: str = "") -> list[Line]:
    """An empty line and a titled rule across the page; a note that fits stands at its right end."""
    left = f"── {title} "
    right = f" {note}" if note and len(left) + len(note) + 5 <= width else ""
    rule = "─" * max(2, width - len(left) - len(right))
    lines = [
        (),
        line(Span("── ", "rule"), Span(title, "strong"), Span(f" {rule}", "rule"), Span(right, "quiet")),
    ]
    if note and not right:
        lines += paragraph(note, width, style="quiet")
    return lines


def paragraph(
    content: str,
    width: int,
    *,
    indent: int = 2,
    hang: int = 0,
    style: Style = "plain",
    mark: Span | None = None,
) -> list[Line]:
    """Text wrapped to the page. `mark` stands in front of its first line, `hang` indents the others."""
    lead = len(mark.text) if mark else 0
    room = max(20, width - indent - max(lead, hang))
    wrapped = textwrap.wrap(content, room, break_on_hyphens=False) or [""]
    first = line(Span(" " * indent), mark or Span(""), Span(wrapped[0], style))
    rest = [line(Span(" " * (indent + max(lead, hang))), Span(text, style)) for text in wrapped[1:]]
    return [first, *rest]


def columns(
    rows: Sequence[Sequence[Span]], widths: Sequence[int], right: Iterable[int] = (), indent: int = 2
) -> list[Line]:
    """Rows of cells in columns of the given widths, those in `right` flush right, one blank between them."""
    flush = set(right)
    lines = []
    for row in rows:
        spans = [Span(" " * indent)]
        for index, (cell, width) in enumerate(zip(row, widths, strict=True)):
            pad = " " * max(0, width - len(cell.text))
            spans += [Span(pad), cell] if index in flush else [cell, Span(pad)]
            spans.append(Span(" "))
        lines.append(tuple(spans))
    return lines


def to_ascii(content: Line) -> Line:
    """A line without characters that an ASCII terminal cannot show."""
    return tuple(
        Span(span.text.translate(_ASCII).encode("ascii", "backslashreplace").decode("ascii"), span.style)
        for span in content
    )
