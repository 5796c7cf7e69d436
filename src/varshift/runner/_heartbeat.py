"""Signs of life while a trial runs."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
from types import TracebackType

from varshift.store import Claimed, ClaimLostError, Owner, Queue, Store, StoreError

BEAT_SECONDS = 5.0
ORPHANED = 3  # exit code of a worker whose parent is gone


class Heartbeat:
    """Gives a sign of life every few seconds, from a thread with a connection of its own.

    A worker whose parent process is gone ends at once: nobody would know of it any more, and its trial goes
    back into the queue.

    Args:
        store: The store.
        owner: The worker.
        run: The trial.
    """

    def __init__(self, store: Store, owner: Owner, run: Claimed) -> None:
        self._folder = store.folder
        self._owner = owner
        self._run = run
        self._stop = threading.Event()
        self._lost = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    @property
    def lost(self) -> bool:
        """Whether the trial has been given to another worker."""
        return self._lost.is_set()

    def _beat(self) -> None:
        parent = multiprocessing.parent_process()
        waited = 0.0
        while not self._stop.wait(1.0):
            if parent is not None and not parent.is_alive():
                os._exit(ORPHANED)
            waited += 1.0
            if waited < BEAT_SECONDS:
                continue
            waited = 0.0
            # A store that is busy now may not be the next time.
            with contextlib.suppress(StoreError):
                self._beat_once()

    def _beat_once(self) -> None:
        with Store(self._folder, create=False) as store:
            try:
                Queue(store, self._owner).beat(self._run)
            except ClaimLostError:
                self._lost.set()
                self._stop.set()

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
