"""The formats a report can be written in; a new one is one file and one entry here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from varshift._errors import VarshiftError
from varshift.report import _html, _json, _svg, _text

if TYPE_CHECKING:
    from varshift.report._report import Report


class Format(Protocol):
    """What a module that writes reports has to offer."""

    name: str
    suffix: str

    def render(self, report: Report) -> str:
        """The report in this format."""
        ...


FORMATS: tuple[Format, ...] = (_json, _text, _html, _svg)


def format_for(path: str | os.PathLike[str]) -> Format:
    """The format that a file's ending names.

    Raises:
        VarshiftError: If no format has that ending.
    """
    suffix = Path(path).suffix.lower()
    for candidate in FORMATS:
        if candidate.suffix == suffix:
            return candidate
    known = ", ".join(candidate.suffix for candidate in FORMATS)
    raise VarshiftError(f"path={str(path)!r} names no format of a report: its ending must be one of {known}.")
