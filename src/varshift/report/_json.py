"""The report as strict JSON, ``varshift.report/2``: one row, one finding, one line."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from varshift.report._report import Report


def render(report: Report) -> str:
    """The report as JSON text that ends in a newline."""
    entries = [f"  {_line(key)}: {_block(value)}" for key, value in report.to_dict().items()]
    return "{\n" + ",\n".join(entries) + "\n}\n"


def _block(value: Any) -> str:
    if isinstance(value, list) and value:
        return "[\n" + ",\n".join(f"    {_line(item)}" for item in value) + "\n  ]"
    return _line(value)


def _line(value: Any) -> str:
    return json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
