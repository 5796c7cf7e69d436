"""The schema of the report file, which is shipped with the package."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any


def report_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of ``varshift.report/1``; every report that is written fits it."""
    text = resources.files("varshift.report").joinpath("_schema.json").read_text(encoding="utf-8")
    return json.loads(text)
