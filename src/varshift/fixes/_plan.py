"""The plan: the edits of a cure as a file that repeats them on a fresh model."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from varshift._errors import VarshiftError
from varshift.fixes._edit import Change, Edit, read_edit
from varshift.report import content_of, decode, encode, write_text

SCHEMA = "varshift.plan/1"


@dataclass(frozen=True, slots=True)
class Plan:
    """What was done to a network, as data that does it again.

    Edits name their places by module path, function and the text of the call, not by lines: a plan outlives
    a version of the library that the network comes from.

    Attributes:
        edits: The edits in order.
        changes: What they changed on the network that they were planned for.
        target: Class name of that network.
        versions: Versions of varshift, torch and of the packages that its modules come from.
    """

    edits: tuple[Edit, ...]
    changes: tuple[Change, ...] = ()
    target: str = ""
    versions: tuple[tuple[str, str], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The plan as strict-JSON values."""
        return {
            "schema": SCHEMA,
            "target": self.target,
            "versions": dict(self.versions),
            "edits": [edit.to_json() for edit in self.edits],
            "changes": encode(self.changes),
        }

    @classmethod
    def from_dict(cls, content: Any) -> Plan:
        """The plan that `to_dict` wrote.

        Raises:
            VarshiftError: If it is no plan, or one with edits of a later version.
        """
        if not isinstance(content, dict) or content.get("schema") != SCHEMA:
            schema = content.get("schema") if isinstance(content, dict) else type(content).__name__
            raise VarshiftError(f"schema={schema!r} is no plan of this version: expected {SCHEMA!r}.")
        return cls(
            tuple(read_edit(edit) for edit in content.get("edits", ())),
            decode(tuple[Change, ...], content.get("changes", []), "plan"),
            str(content.get("target", "")),
            tuple(sorted((str(k), str(v)) for k, v in dict(content.get("versions", {})).items())),
        )

    def to_json(self) -> str:
        """The plan as JSON text."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the plan; what was there before is unharmed where that fails.

        Raises:
            VarshiftError: If the file cannot be written.
        """
        return write_text(path, self.to_json())

    @classmethod
    def from_json(cls, source: str | os.PathLike[str]) -> Plan:
        """Reads a plan from a file, or from its text.

        Raises:
            VarshiftError: If the file cannot be read, or is no plan.
        """
        return cls.from_dict(content_of(source, "plan"))
