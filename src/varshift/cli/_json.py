"""The file that ``--json`` names; ``-`` is standard output."""

from __future__ import annotations

import sys


def check_json(file: str | None) -> None:
    """Makes sure, before long work, that the file can be written.

    Raises:
        VarshiftError: If it cannot.
    """
    from varshift.report import check_writable

    if file is not None and file != "-":
        check_writable(file)


def write_json(text: str, file: str | None) -> None:
    """Writes JSON to the file that was named, if one was.

    Raises:
        VarshiftError: If it cannot be written.
    """
    from varshift.report import write_text

    if file == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
    elif file is not None:
        write_text(file, text)
