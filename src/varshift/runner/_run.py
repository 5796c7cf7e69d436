"""Runs trials to the end, whoever runs them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from varshift.runner._assignment import Assignment
from varshift.runner._executor import Executor
from varshift.store import Owner, Progress, Queue, Store

POLL_SECONDS = 0.5


def run(
    store: Store,
    executor: Executor,
    assignments: Sequence[Assignment],
    follow: Callable[[Progress, int], object],
) -> Progress:
    """Has all trials of some assignments run and waits until each is done or has failed.

    Trials that other processes run already, on this machine or another that shares the store, are waited for,
    and taken over should their workers die.

    Args:
        store: The store, where the trials are queued.
        executor: Who starts workers.
        assignments: What each of the workers is told; as many as there shall be workers at most.
        follow: Told of the progress and of the number of workers.

    Returns:
        How it ended.

    Raises:
        RunnerError: If workers cannot be started.
        KeyboardInterrupt: If it is interrupted; the trials are then back in the queue.
    """
    keys = list(dict.fromkeys(key for one in assignments for key in one.keys))
    queue = Queue(store, Owner.here(), keys)
    queue.reclaim()
    queue.forgive()
    crew = executor.crew(assignments)
    try:
        while True:
            queue.reclaim()
            progress = store.progress(keys)
            # New workers only where a trial waits; those that live look for the next one by themselves.
            wanted = min(progress.open, len(assignments)) if progress.counts["queued"] else 0
            follow(progress, crew.tend(wanted))
            if not progress.open:
                return progress
            time.sleep(POLL_SECONDS)
    finally:
        crew.stop()
