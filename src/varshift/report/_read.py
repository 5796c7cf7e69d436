"""Reading report files of every version."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from varshift._errors import VarshiftError
from varshift.report._version1 import upgraded

SCHEMA = "varshift.report/2"
_FIRST = "varshift.report/1"


def content_of(source: str | os.PathLike[str], kind: str = "report") -> dict[str, Any]:
    """The content of a JSON text or of a file.

    Args:
        source: The text, or the path of the file.
        kind: What it should be, for errors.

    Raises:
        VarshiftError: If the file cannot be read or is no JSON object.
    """
    text, name = str(source), "the text"
    if not isinstance(source, str) or not source.lstrip().startswith(("{", "[")):
        name = repr(str(source))
        try:
            text = Path(source).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError, ValueError) as error:
            reason = error.strerror.lower() if isinstance(error, OSError) and error.strerror else str(error)
            raise VarshiftError(f"cannot read {name} as a {kind}: {reason}.") from error
    try:
        content = json.loads(text)
    except ValueError as error:
        raise VarshiftError(f"cannot read {name} as a {kind}: it is no JSON ({error}).") from error
    if not isinstance(content, dict):
        raise VarshiftError(f"cannot read {name} as a {kind}: it holds a list and not an object.")
    return content


def current(content: dict[str, Any]) -> dict[str, Any]:
    """The content of a file of any version as that of the present version.

    Raises:
        VarshiftError: If the version is not known.
    """
    version = content.get("schema")
    if version == SCHEMA:
        return content
    if version == _FIRST:
        return upgraded(content)
    raise VarshiftError(
        f"schema={version!r} is no version of a report that this varshift reads, which are {SCHEMA} and "
        f"{_FIRST}. A later version needs a later varshift."
    )
