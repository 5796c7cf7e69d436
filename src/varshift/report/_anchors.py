"""Where a finding is shown in a repository: a file below the working directory, and a line of it."""

from __future__ import annotations

import ast
import linecache
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote

from varshift._printable import printable
from varshift._sites import Source

if TYPE_CHECKING:
    from varshift.report._report import Report
    from varshift.rules import Finding

_PACKAGES = ("site-packages", "dist-packages")
# What stands for the project where no line of it is known.
_PROJECT = ("pyproject.toml", "setup.py", "setup.cfg", "README.md", "README.rst", "requirements.txt")


@dataclass(frozen=True, slots=True)
class Anchor:
    """A line of a file, named so that it is the same on every machine where that can be.

    Attributes:
        path: Path with slashes: from the working directory, or from the folder of packages, else absolute.
        line: Number of the line, from 1.
        within: What the path starts from.
        columns: Length of the line, 0 where it cannot be read.
    """

    path: str
    line: int
    within: Literal["project", "packages", "elsewhere"] = "project"
    columns: int = 0

    @property
    def uri(self) -> str:
        """The path as a URI reference."""
        path = printable(self.path)
        return f"file://{quote(path)}" if self.within == "elsewhere" else quote(path)


def anchor_of(report: Report, finding: Finding) -> Anchor:
    """The line of the project where a finding is shown.

    The first of its sites whose line lies in the project says where. A finding inside a library has none: it
    is shown where the project makes the network, for a service that shows a repository shows no other file.
    """
    own = anchors_of(finding)
    for anchor in own:
        if anchor.within == "project":
            return anchor
    return _definition(report.model.target) or _project_file() or (own[0] if own else Anchor(_PROJECT[0], 1))


def anchors_of(finding: Finding) -> list[Anchor]:
    """The lines of all sites of a finding that have one, in their order."""
    return [anchor for site in finding.sites if (anchor := located(site.source)) is not None]


def aside(finding: Finding, anchor: Anchor) -> str:
    """The line that a finding is about, ``(zoo/blocks.py:12)``, where it is shown at another one."""
    own = anchors_of(finding)
    return f" ({own[0].path}:{own[0].line})" if own and own[0] != anchor else ""


def located(source: Source | None) -> Anchor | None:
    """A line of code as an anchor; None where there is none, or where it is in no file (``<stdin>``)."""
    if source is None or source.file.startswith("<"):
        return None
    path, here = os.path.realpath(source.file), os.path.realpath(os.getcwd())
    parts = Path(path).parts
    columns = len(linecache.getline(path, source.line).rstrip("\n"))
    # An environment often lies inside the project's folder: what is installed comes first.
    for index in range(len(parts) - 1, 0, -1):
        if parts[index] in _PACKAGES:
            return Anchor("/".join(parts[index + 1 :]), source.line, "packages", columns)
    if Path(path).is_relative_to(here):
        return Anchor(Path(path).relative_to(here).as_posix(), source.line, "project", columns)
    return Anchor(Path(path).as_posix(), source.line, "elsewhere", columns)


def _definition(target: str) -> Anchor | None:
    """Where the project defines what a target of the command line names, read without importing it."""
    module, _, name = target.rpartition(":")
    if not module:
        return None
    stem = module.replace(".", "/")
    names = [module] if module.endswith(".py") else [f"{stem}.py", f"{stem}/__init__.py"]
    for candidate in [*names, *(f"src/{file}" for file in names)]:
        if "\0" in candidate or not os.path.isfile(candidate):
            continue
        anchor = located(Source(candidate, _line_of(name.partition(".")[0], candidate)))
        if anchor is not None and anchor.within == "project":
            return anchor
    return None


def _line_of(name: str, file: str) -> int:
    try:
        body = ast.parse(Path(file).read_bytes()).body
    except (OSError, SyntaxError, ValueError):
        return 1
    for node in body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if getattr(node, "name", None) == name or name in [getattr(one, "id", None) for one in targets]:
            return node.lineno
    return 1


def _project_file() -> Anchor | None:
    return next((Anchor(name, 1) for name in _PROJECT if os.path.isfile(name)), None)
