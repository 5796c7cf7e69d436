"""Work on one network after another, each in a process of its own, into a file of JSON lines."""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def load(path: Path) -> dict[str, dict[str, Any]]:
    """The rows of a file by name; a later one replaces an earlier one."""
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines]
    return {row["name"]: row for row in rows}


def append(path: Path, row: dict[str, Any]) -> None:
    """Adds a row to a file."""
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def row_of(name: str, work: Callable[[], dict[str, Any]], seconds: float) -> dict[str, Any]:
    """A row from a process of its own that shares what is imported; how it died, where it did.

    Args:
        name: Name of the row.
        work: Makes the row, of strict-JSON values.
        seconds: Time limit.
    """
    with tempfile.TemporaryDirectory() as folder:
        result, log = Path(folder) / "row.json", Path(folder) / "log"
        process = multiprocessing.get_context("fork").Process(target=_write, args=(work, result, log))
        process.start()
        process.join(seconds)
        if process.is_alive():
            process.kill()
            process.join()
            return {"name": name, "died": f"not done after {seconds:.0f} s"}
        if process.exitcode or not result.exists():
            return {"name": name, "died": f"exit {process.exitcode}: {log.read_text()[-1500:]}"}
        return json.loads(result.read_text())


def _write(work: Callable[[], dict[str, Any]], result: Path, log: Path) -> None:
    with log.open("w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
        result.write_text(json.dumps(work()))
