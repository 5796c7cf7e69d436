"""The report as plain text, with no package but this one."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING

from varshift._printable import printable
from varshift.report._layout import page
from varshift.report._page import paragraph, text_of
from varshift.report._summary import sentences
from varshift.report._words import finding_name, place

if TYPE_CHECKING:
    from varshift.report._report import Report

DEFAULT_WIDTH = 100
LISTED = 8


def render(report: Report, *, width: int | None = None, full: bool = False, ascii_only: bool = False) -> str:
    """The whole report as plain text that ends in a newline.

    Args:
        report: The report.
        width: Columns; by default those of the terminal that is printed to (140 at most), else 100.
        full: Whether to show every finding and every layer.
        ascii_only: Whether to do without line-drawing characters.
    """
    lines = page(report, width=width or _width(), full=full, ascii_only=ascii_only)
    return "\n".join(text_of(content) for content in lines) + "\n"


def _width() -> int:
    if sys.stdout is not None and sys.stdout.isatty():
        return min(140, shutil.get_terminal_size((DEFAULT_WIDTH, 24)).columns)
    return DEFAULT_WIDTH


def brief(report: Report) -> str:
    """A few lines for a prompt: the verdict, what explains it, and the first findings."""
    first, *others = sentences(report)
    lines = [f"<Report {report.model.target}: {first}"]
    for sentence in others:
        lines += [text_of(content) for content in paragraph(sentence, DEFAULT_WIDTH)]
    for finding in report.findings[:LISTED]:
        source = f" ({place(finding.source)})" if finding.source else ""
        more = f" and {len(finding.sites) - 1} more" if len(finding.sites) > 1 else ""
        lines.append(f"  {finding.severity} {finding.code} {finding_name(finding)}{source}{more}")
    if len(report.findings) > LISTED:
        lines.append(f"  and {len(report.findings) - LISTED} more findings")
    lines.append("  print(report) shows all of it, report.save('report.json') writes it down>")
    return "\n".join(map(printable, lines))
