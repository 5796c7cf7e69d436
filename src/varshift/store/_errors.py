"""What can be wrong with a store, in one clear line each."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from varshift._errors import VarshiftError


class StoreError(VarshiftError):
    """The store cannot be used; the message says why and what helps."""


class ClaimLostError(VarshiftError):
    """Another worker has been given the trial; what this one finds is not counted."""


_DAMAGED = (
    "move lab.sqlite away and run the same command again; what had finished is read back from the logs."
)
_CAUSES = {
    sqlite3.SQLITE_FULL: "the disk is full: free some space and run the same command again.",
    sqlite3.SQLITE_READONLY: "it may not be written to: check the permissions of the folder and its files.",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened: check that the folder exists and may be written to.",
    sqlite3.SQLITE_BUSY: "another process has kept it locked for too long; try again.",
    sqlite3.SQLITE_IOERR: "reading or writing it failed: check the disk and the space left on it.",
    sqlite3.SQLITE_NOTADB: f"lab.sqlite is no database, or a damaged one: {_DAMAGED}",
    sqlite3.SQLITE_CORRUPT: f"lab.sqlite is damaged: {_DAMAGED}",
}


@contextlib.contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Turns what SQLite and the system say into a `StoreError` that names the store."""
    try:
        yield
    except sqlite3.Error as error:
        # The low byte is the kind of the error, the rest its variety.
        code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
        cause = _CAUSES.get(code, f"{error}.")
        raise StoreError(f"store={str(folder)!r} cannot be used: {cause}") from error
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise StoreError(f"store={str(folder)!r} cannot be used: {reason}.") from error
