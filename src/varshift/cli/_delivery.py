"""Where the report of a check goes: to standard output, into a file, onto the page of a job."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from varshift._errors import VarshiftError

if TYPE_CHECKING:
    from varshift.report import Report

# A file that GitHub Actions shows as Markdown on the page of the job; annotations are limited to ten of
# a kind.
_SUMMARY = "GITHUB_STEP_SUMMARY"


def only_new(report: Report, earlier: Report | None, name: str) -> Report:
    """The report without the findings that an earlier one has too; a note on standard error says how many.

    Without them its verdict could say that all is well, so it has none.
    """
    from varshift.cli._errors import print_note
    from varshift.report import counted, new_findings

    if earlier is None:
        return report
    found = new_findings(report, earlier)
    if hidden := len(report.findings) - len(found):
        note = f"{counted(hidden, 'finding')} of the baseline {name} left out: this is only what is new."
        print_note(note)
        return dataclasses.replace(report, findings=found, verdict=None, left_out=hidden)
    return report


def save(report: Report, shown: Report, output: str, *, fail_on: str) -> None:
    """Writes the file that ``--output`` names: JSON with all findings, so that it can be the next baseline.

    Raises:
        VarshiftError: If it cannot be written.
    """
    from varshift.report import format_for, write_text

    name = format_for(output).name
    write_text(output, _rendered(report if name == "json" else shown, name, fail_on))


def deliver(report: Report, name: str, *, full: bool, to_error: bool, fail_on: str) -> None:
    """Writes the report to standard output in a format; text goes to the console.

    Raises:
        VarshiftError: If the page of the job cannot be written.
    """
    from varshift.cli._console import wide_console
    from varshift.report import print_report

    if name == "text":
        print_report(report, wide_console(to_error=to_error), full=full)
        return
    sys.stdout.write(_rendered(report, name, fail_on))
    sys.stdout.flush()
    if name == "github" and (page := os.environ.get(_SUMMARY)):
        try:
            with Path(page).open("a", encoding="utf-8") as file:  # other steps write there too
                file.write(_rendered(report, "md", fail_on))
        except OSError as error:
            raise VarshiftError(f"{_SUMMARY}: cannot write {page!r}: {error.strerror}.") from error


def _rendered(report: Report, name: str, fail_on: str) -> str:
    from varshift.report import FORMATS

    # What JUnit calls a failure is what makes the check fail.
    return FORMATS[name].render(report, **({"fail_on": fail_on} if name == "junit" else {}))
