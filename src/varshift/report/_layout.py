"""The page: all sections of a report, laid out once for every human-readable format."""

from __future__ import annotations

from typing import TYPE_CHECKING

from varshift.report._closing import closing_section
from varshift.report._findings import findings_section
from varshift.report._layers import layers_section, noises_section
from varshift.report._page import Line, to_ascii
from varshift.report._summary import summary_section
from varshift.report._waterfall import gap_section

if TYPE_CHECKING:
    from varshift.report._report import Report

MINIMUM_WIDTH = 60


def page(report: Report, *, width: int, full: bool = False, ascii_only: bool = False) -> list[Line]:
    """The whole report laid out for a page of `width` columns.

    Args:
        report: The report.
        width: Columns to fill; narrower than 60 is laid out for 60.
        full: Whether to show every finding and every layer instead of the worst.
        ascii_only: Whether to do without line-drawing characters.
    """
    width = max(width, MINIMUM_WIDTH)
    lines = [
        *summary_section(report, width),
        *findings_section(report, width, full=full),
        *layers_section(report, width, full=full),
        *noises_section(report, width, full=full),
        *gap_section(report, width),
        *closing_section(report, width, full=full),
    ]
    return [to_ascii(content) for content in lines] if ascii_only else lines
