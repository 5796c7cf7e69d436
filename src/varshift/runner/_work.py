"""A worker: claims one trial after the other until none waits."""

from __future__ import annotations

import contextlib
import gc
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from varshift._errors import VarshiftError
from varshift.runner._assignment import Assignment
from varshift.runner._heartbeat import Heartbeat
from varshift.runner._plain import plain_measurements
from varshift.runner._tensorboard import Board
from varshift.store import (
    Claimed,
    ClaimLostError,
    Log,
    Owner,
    Queue,
    Store,
    StoreError,
    provenance,
)
from varshift.trials import Workbench, decode_trial


def work(assignment: Assignment, begun: Callable[[], object] = lambda: None) -> int:
    """Runs trials until none waits that may be run, and returns how many it ran.

    A trial that fails is recorded with its reason, and the next one begins. Interrupted, it puts the trial
    back into the queue; killed, its claim runs out. Either way the trial goes on from its last checkpoint.

    Args:
        assignment: What to do.
        begun: Called when the worker has asked for its first trial.

    Raises:
        StoreError: If the store cannot be used.
        KeyboardInterrupt: If it is interrupted.
    """
    owner = Owner.here()
    done = 0
    with Store(assignment.store, create=False) as store:
        queue = Queue(store, owner, assignment.keys)
        run = queue.claim()
        begun()
        usable = True
        while run is not None:
            try:
                # A worker whose claim is lost goes on with another trial.
                with contextlib.suppress(ClaimLostError):
                    usable = _attempt(store, queue, owner, run, assignment)
                    done += 1
            except BaseException:
                with contextlib.suppress(ClaimLostError, StoreError):
                    queue.release(run)
                raise
            free_memory()
            run = queue.claim() if usable else None
    return done


def _attempt(store: Store, queue: Queue, owner: Owner, run: Claimed, assignment: Assignment) -> bool:
    """Runs one trial and records how it ended; whether this process can run another."""
    start = time.monotonic()
    folder = store.run_folder(run.key)
    with Heartbeat(store, owner, run) as heartbeat:
        try:
            trial = decode_trial(run.data)
            with _Recorder(queue, run, folder, heartbeat, board=assignment.tensorboard) as record:
                record.begin(assignment)
                store.checkpoints(run.key).mkdir(parents=True, exist_ok=True)
                _set_threads(assignment.threads)
                measured = trial.run(
                    Workbench(
                        device=assignment.device,
                        folder=store.checkpoints(run.key),
                        record=record,
                        data_folder=assignment.data_folder,
                        precision=assignment.precision,
                        compile=assignment.compile,
                        materials=assignment.materials,
                    )
                )
            measurements = plain_measurements(measured)
        except (ClaimLostError, StoreError):
            raise
        except Exception as error:  # whatever a trial comes to, the others go on
            queue.fail(run, reason_of(error), "".join(traceback.format_exception(error)))
            return not is_lasting(error)
    _set_threads(assignment.threads)  # provenance tells them, also where the trial loaded torch
    ran_on = provenance(assignment.device, assignment.precision, assignment.compile)
    queue.finish(run, measurements, ran_on, time.monotonic() - start)
    if not assignment.keep:
        shutil.rmtree(store.checkpoints(run.key), ignore_errors=True)
    return True


def is_lasting(error: BaseException) -> bool:
    """Whether an error of a GPU has left the process without it: all its later calls would fail too."""
    torch = sys.modules.get("torch")
    if torch is None or isinstance(error, torch.cuda.OutOfMemoryError):
        return False
    return isinstance(error, RuntimeError) and "CUDA error" in str(error)


def free_memory() -> None:
    """Gives back what a trial has used of a GPU, which others may share."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


def reason_of(error: BaseException) -> str:
    """One line for the reason of a failure; errors that were not foreseen come with their kind."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror.lower()}{where}"
    if isinstance(error, VarshiftError) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _set_threads(threads: int | None) -> None:
    torch = sys.modules.get("torch")
    if threads is not None and torch is not None and torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


class _Recorder:
    """Writes what a trial records to its log, and to TensorBoard where that is wanted."""

    def __init__(
        self, queue: Queue, run: Claimed, folder: Path, heartbeat: Heartbeat, *, board: bool
    ) -> None:
        self._queue = queue
        self._run = run
        self._heartbeat = heartbeat
        self._log = Log(folder / "log.jsonl")
        self._board = Board(queue.store.folder / "tensorboard" / run.key) if board else None
        self._progressed = False

    def begin(self, assignment: Assignment) -> None:
        """Records the beginning of the attempt."""
        self._log.append(
            "started",
            claim=self._run.claim,
            attempt=self._run.attempt,
            device=assignment.device,
            trial=self._run.data,
            sync=True,
        )

    def __call__(self, event: Mapping[str, Any]) -> None:
        if self._heartbeat.lost:
            raise ClaimLostError(f"{self._run.title} has been given to another worker.")
        fields = {str(key): value for key, value in event.items()}
        name = str(fields.pop("event", "event"))
        self._log.append(name, **{key: value for key, value in fields.items() if key != "time"})
        if not self._progressed:
            self._progressed = True
            self._queue.beat(self._run, progressed=True)
        if self._board is not None:
            self._board(event)

    def __enter__(self) -> _Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self._log.close()
        if self._board is not None:
            self._board.close()
