"""The tables of a store, and how one of an older version is brought up to date."""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path

from varshift.store._errors import StoreError

# "VSLB": tells the file from any other SQLite database.
APPLICATION = 0x56534C42
BUSY_SECONDS = 60.0

# One entry per version: what turns a store of the version before into it. Entries are never changed.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE runs (
            key TEXT PRIMARY KEY,
            trial TEXT NOT NULL,
            title TEXT NOT NULL,
            state TEXT NOT NULL DEFAULT 'queued' CHECK (state IN ('queued', 'running', 'done', 'failed')),
            attempts INTEGER NOT NULL DEFAULT 0,
            crashes INTEGER NOT NULL DEFAULT 0,
            claim TEXT,
            machine TEXT,
            process INTEGER,
            born TEXT,
            alive REAL,
            started REAL,
            finished REAL,
            seconds REAL NOT NULL DEFAULT 0,
            reason TEXT,
            measurements TEXT,
            provenance TEXT
        )""",
        "CREATE INDEX runs_by_state ON runs (state)",
        """CREATE TABLE wants (
            recipe TEXT NOT NULL,
            scale TEXT NOT NULL,
            study TEXT NOT NULL,
            key TEXT NOT NULL REFERENCES runs (key),
            PRIMARY KEY (recipe, scale, study, key)
        ) WITHOUT ROWID""",
    ),
)
VERSION = len(MIGRATIONS)

# File systems on which several machines may see one file, but not one shared memory.
_NETWORK = ("nfs", "cifs", "smb", "lustre", "gpfs", "beegfs", "fuse.sshfs", "ceph", "glusterfs", "afs", "9p")


def connect(file: Path) -> sqlite3.Connection:
    """A connection to a store of this version; an empty or older file is brought up to it.

    Raises:
        StoreError: If the file is another program's, or of a newer version.
        sqlite3.Error: If it cannot be opened.
    """
    connection = sqlite3.connect(file, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        connection.row_factory = sqlite3.Row
        _check(connection, file)  # before anything is changed in a file that may be another's
        _set_journal(connection, file)
        # What is reported as finished must outlast a power cut too; there are few transactions.
        connection.execute("PRAGMA synchronous = FULL")
        if _version(connection) < VERSION:
            _migrate(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _version(connection: sqlite3.Connection) -> int:
    return connection.execute("PRAGMA user_version").fetchone()[0]


def _check(connection: sqlite3.Connection, file: Path) -> None:
    # In this order, for another process may make the tables, and sign them, in between.
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    if tables and application != APPLICATION:
        raise StoreError(
            f"store={str(file.parent)!r}: its {file.name} is another program's; name a new folder."
        )
    if (version := _version(connection)) > VERSION:
        raise StoreError(
            f"store={str(file.parent)!r} is of version {version}, of a newer varshift; this one knows "
            f"versions up to {VERSION}: upgrade varshift, or name another folder."
        )


def _migrate(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        # Another process may have done it while this one waited for the lock.
        for version in range(_version(connection), VERSION):
            for statement in MIGRATIONS[version]:
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION}")
        connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _set_journal(connection: sqlite3.Connection, file: Path) -> None:
    """A write-ahead log, or where machines cannot share the memory it needs a rollback journal."""
    wanted = "delete" if on_network(file.parent) else "wal"
    deadline = time.monotonic() + BUSY_SECONDS
    while connection.execute("PRAGMA journal_mode").fetchone()[0] != wanted:
        try:
            connection.execute(f"PRAGMA journal_mode = {wanted}")
        except sqlite3.OperationalError as error:
            # Changing the mode takes the whole file and does not wait for it by itself.
            if (error.sqlite_errorcode & 0xFF) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            if connection.execute("PRAGMA journal_mode").fetchone()[0] in ("wal", "delete"):
                return
            time.sleep(0.05)


def on_network(folder: Path) -> bool:
    """Whether a folder lies on a network file system, as far as the system tells."""
    try:
        mounts = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    path, best, kind = os.path.realpath(folder), "", ""
    for line in mounts:
        _, point, found, *_ = line.split(" ")
        point = point.replace("\\040", " ")
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, found
    return kind.startswith(_NETWORK)
