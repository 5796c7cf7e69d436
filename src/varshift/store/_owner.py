"""Who holds a trial: a process that can be told apart from all others, and whether it still lives."""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import socket
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Owner:
    """A worker.

    Attributes:
        token: Its own name, never used again.
        machine: Machine whose process numbers it is counted by; another in a container and after a reboot.
        process: Process number.
        born: When the process began, in the machine's own ticks, for numbers are used again; may be empty.
    """

    token: str
    machine: str
    process: int
    born: str

    @classmethod
    def here(cls) -> Owner:
        """A new worker in this process."""
        return cls(secrets.token_hex(8), machine(), os.getpid(), birth(os.getpid()))


@functools.cache
def machine() -> str:
    """Name of this machine, its boot and its space of process numbers."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # elsewhere than on Linux the name alone has to do
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8])
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def birth(process: int) -> str:
    """When a process began, in ticks since the boot; empty where the system does not tell."""
    fields = _status(process)
    return fields[19] if fields else ""


def is_gone(host: str, process: int, born: str) -> bool:
    """Whether a worker is certainly dead; False where that cannot be told from here."""
    if host != machine() or os.name != "posix":
        return False
    try:
        with contextlib.suppress(PermissionError):  # somebody else's, so there is one
            os.kill(process, 0)
    except ProcessLookupError:
        return True
    if not born:
        return False
    fields = _status(process)
    # A zombie has ended, though nobody has asked for its exit code yet.
    return not fields or fields[19] != born or fields[0] in "ZX"


def _status(process: int) -> list[str]:
    """What the system says of a process, from its state on; nothing where it does not tell."""
    try:
        # The second field, the name, is in brackets and may hold anything.
        return Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []
