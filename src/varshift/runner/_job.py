"""What a worker does in a process that an engine has started."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence

from varshift.runner._assignment import Assignment
from varshift.runner._work import work

# Engines say in one of these ways that time is up: cancelled, preempted, at the limit.
_NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2")
INTERRUPTS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))


def work_in_job(assignment: Assignment, path: Sequence[str]) -> int:
    """A worker that puts its trial back when the engine ends it; the number of trials it ran, else 0.

    Args:
        assignment: What to do.
        path: Where modules are looked for, as in the process that queued the trials.
    """
    sys.path[:] = [*sys.path, *(entry for entry in path if entry not in sys.path)]
    limit_threads(assignment.threads)
    with interruptible():
        try:
            return work(assignment)
        except KeyboardInterrupt:
            return 0


def limit_threads(threads: int | None) -> None:
    """Sets the threads of libraries that are loaded later."""
    if threads is not None:
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ[name] = str(threads)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Raises KeyboardInterrupt at the first of the signals that end a worker, and takes no notice of more."""
    before = {}
    with contextlib.suppress(ValueError):  # outside the main thread the engine has ways of its own
        for number in INTERRUPTS:
            before[number] = signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: object) -> None:
    # Once is enough: the terminal tells all, the parent tells again, and the trial has to be put back.
    for one in INTERRUPTS:
        signal.signal(one, signal.SIG_IGN)
    raise KeyboardInterrupt
