"""The file that ``--json`` names; ``-`` is standard output."""

from __future__ import annotations

import contextlib
import sys


def check_json(file: str | None) -> None:
    """Makes sure, before long work, that the file can be written.

    Raises:
        VarshiftError: If it cannot.
    """
    from varshift.report import check_writable

    if file is not None and file != "-":
        check_writable(file)


def users_output(file: str | None) -> contextlib.AbstractContextManager[object]:
    """Sends what the user's code prints to standard error where standard output is for the JSON alone."""
    return contextlib.redirect_stdout(sys.stderr) if file == "-" else contextlib.nullcontext()


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
