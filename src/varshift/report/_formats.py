"""The registry of formats: how a report is rendered, by name. It knows none of them.

A new format is one file, and one call of `register` in the room's ``__init__``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from varshift._errors import VarshiftError


@dataclass(frozen=True, slots=True)
class Format:
    """A way of rendering a report.

    Attributes:
        name: What it is called.
        render: Function of a report, and of options of its own; returns the rendered report.
        suffix: Ending of its files, None where it is no format of files.
    """

    name: str
    render: Callable[..., Any]
    suffix: str | None = None


_FORMATS: dict[str, Format] = {}

FORMATS: Mapping[str, Format] = MappingProxyType(_FORMATS)


def register(name: str, render: Callable[..., Any], suffix: str | None = None) -> Format:
    """Adds a format to the registry.

    Raises:
        VarshiftError: If the name or the ending is taken.
    """
    for other in _FORMATS.values():
        if name == other.name or (suffix is not None and suffix == other.suffix):
            raise VarshiftError(f"name={name!r}, suffix={suffix!r}: {other.name!r} has it already.")
    _FORMATS[name] = Format(name, render, suffix)
    return _FORMATS[name]


def format_for(path: str | os.PathLike[str]) -> Format:
    """The format that a file's ending names.

    Raises:
        VarshiftError: If no format has that ending.
    """
    suffix = Path(path).suffix.lower()
    formats = [candidate for candidate in _FORMATS.values() if candidate.suffix]
    for candidate in formats:
        if candidate.suffix == suffix:
            return candidate
    known = ", ".join(str(candidate.suffix) for candidate in formats)
    raise VarshiftError(f"path={str(path)!r} names no format of a report: its ending must be one of {known}.")
