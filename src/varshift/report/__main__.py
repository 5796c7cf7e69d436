"""Writes the schema file that is shipped with the package: ``python -m varshift.report``."""

from __future__ import annotations

import json
from pathlib import Path

from varshift.report._files import write_text
from varshift.report._read import SCHEMA
from varshift.report._report import Report
from varshift.report._schema import derived_schema

if __name__ == "__main__":
    path = Path(__file__).with_name("_schema.json")
    write_text(path, json.dumps(derived_schema(Report, SCHEMA), indent=2) + "\n")
