"""Workers as processes of this machine."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

from varshift.runner._assignment import Assignment
from varshift.runner._errors import RunnerError
from varshift.runner._futile import Futile
from varshift.runner._job import interruptible, limit_threads
from varshift.runner._work import reason_of, work
from varshift.store import StoreError

FINISHED, BROKEN, INTERRUPTED = 0, 2, 130
STOP_SECONDS = 10.0


class LocalExecutor:
    """Starts fresh processes, not forks, since a process that has used CUDA cannot be forked.

    Args:
        options: None are known.

    Raises:
        RunnerError: If there are any.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        if options:
            raise RunnerError(f"the local executor has no setting {next(iter(options))!r}; leave it out.")

    def crew(self, assignments: Sequence[Assignment]) -> LocalCrew:
        """See `Executor`."""
        return LocalCrew(assignments)


@dataclass(frozen=True, slots=True)
class _Worker:
    process: SpawnProcess
    word: Connection
    place: int

    def has_begun(self) -> bool:
        """Whether it got as far as looking for work; to be asked once, when it has ended."""
        with self.word:
            try:
                return bool(self.word.recv_bytes())
            except EOFError:
                return False


class LocalCrew:
    """Processes of this machine, replaced when they die.

    Args:
        assignments: One for each place that a worker can take.
    """

    def __init__(self, assignments: Sequence[Assignment]) -> None:
        self._assignments = assignments
        self._workers: list[_Worker] = []
        self._context = multiprocessing.get_context("spawn")
        self._futile = Futile("their output is above")

    def tend(self, wanted: int) -> int:
        """See `Crew`."""
        for worker in [worker for worker in self._workers if not worker.process.is_alive()]:
            self._workers.remove(worker)
            self._lay_out(worker)
        taken = {worker.place for worker in self._workers}
        free = [place for place in range(len(self._assignments)) if place not in taken]
        for place in free[: max(wanted - len(self._workers), 0)]:
            self._start(place)
        return len(self._workers)

    def _start(self, place: int) -> None:
        # A pipe, since an event of this module is a semaphore, which stays when the parent is killed.
        reader, writer = self._context.Pipe(duplex=False)
        with writer:
            process = self._context.Process(target=_main, args=(self._assignments[place], writer))
            process.start()
        self._workers.append(_Worker(process, reader, place))

    def _lay_out(self, worker: _Worker) -> None:
        code = worker.process.exitcode
        if worker.has_begun() and code != BROKEN:
            self._futile.note(None)
        else:
            self._futile.note(f"by signal {-code}" if code is not None and code < 0 else f"with code {code}")

    def stop(self) -> None:
        """See `Crew`."""
        for worker in self._workers:
            worker.process.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        try:
            for worker in self._workers:
                worker.process.join(max(deadline - time.monotonic(), 0.0))
        finally:
            for worker in self._workers:
                if worker.process.is_alive():
                    worker.process.kill()
                    worker.process.join()
                worker.word.close()
            self._workers.clear()


def _main(assignment: Assignment, word: Connection) -> None:
    """What a worker process does."""
    limit_threads(assignment.threads)
    code = FINISHED
    try:
        with interruptible():
            work(assignment, lambda: _send(word))
    except KeyboardInterrupt:
        code = INTERRUPTED
    except StoreError as error:
        _say(reason_of(error))
        code = BROKEN
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    # Nothing is left to do, and taking down an interpreter with torch in it takes long.
    os._exit(code)


def _send(word: Connection) -> None:
    with contextlib.suppress(OSError):  # who would hear it is gone
        word.send_bytes(b"begun")


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"varshift: {text}\n".encode())
