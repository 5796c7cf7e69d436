"""The log of a trial: one event per line, only ever appended to."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


class Log:
    """Appends events to a file of JSON lines.

    A line is written in one piece, so that several writers do not mix theirs, and an end that was torn off by
    a crash is closed first, so that it costs no line but its own.

    Args:
        file: The file; its folder is made if need be.

    Raises:
        OSError: If it cannot be written, here and in `append`.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        self._handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        size = os.fstat(self._handle).st_size
        self._torn = False
        if size > 0:
            os.lseek(self._handle, -1, os.SEEK_END)
            self._torn = os.read(self._handle, 1) != b"\n"

    def append(self, event: str, *, sync: bool = False, **fields: Any) -> None:
        """Appends one event; `sync` waits until it is on the disk."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "event": event, **fields}, default=str).encode() + b"\n"
        line = b"\n" + line if self._torn else line
        written = os.write(self._handle, line)
        self._torn = written < len(line)
        if self._torn:
            # A disk that is full takes part of a line.
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if sync:
            os.fsync(self._handle)

    def close(self) -> None:
        """Closes the file."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_log(file: Path) -> Iterator[Mapping[str, Any]]:
    """The events of a log in their order, none where there is no file; torn lines are left out."""
    try:
        lines = file.read_bytes().split(b"\n")
    except FileNotFoundError:
        return
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict):
            yield event
