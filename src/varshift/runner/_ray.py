"""Workers as tasks of a Ray cluster, several to a GPU where they are small."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from varshift.runner._assignment import Assignment
from varshift.runner._errors import RunnerError
from varshift.runner._futile import Futile
from varshift.runner._job import work_in_job
from varshift.runner._work import reason_of
from varshift.store import Store

STOP_SECONDS = 10.0
# What a task is given; all other settings are those of the connection.
_TASK = ("num_cpus", "num_gpus", "memory", "resources", "accelerator_type")


class RayExecutor:
    """Runs each worker as a task of Ray; ``num_gpus=0.25`` lets four of them share a GPU.

    The store must lie where all nodes see it.

    Args:
        options: ``num_cpus`` (1 by default), ``num_gpus`` (0 by default), ``memory``, ``resources`` and
            ``accelerator_type`` of a worker; all others are those of ``ray.init``, such as ``address``,
            without which a cluster of this machine alone is started.

    Raises:
        RunnerError: If Ray is not installed.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        try:
            import ray
        except ImportError as error:
            raise RunnerError('Ray is not installed: pip install "varshift[ray]".') from error
        self._ray: Any = ray
        self._task: dict[str, Any] = {"num_cpus": 1, "max_retries": 0}
        self._task |= {name: value for name, value in options.items() if name in _TASK}
        self._connection = {name: value for name, value in options.items() if name not in _TASK}

    def crew(self, assignments: Sequence[Assignment]) -> RayCrew:
        """See `Executor`.

        Raises:
            RunnerError: If the cluster cannot be reached, or there is no such setting.
        """
        ours = not self._ray.is_initialized()
        if ours:
            settings = {
                "include_dashboard": False,
                "log_to_driver": False,
                "logging_level": "ERROR",
                # Tasks look for modules where this process does.
                "runtime_env": {"env_vars": {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}},
                **self._connection,
            }
            if "address" in settings:
                settings.pop("include_dashboard")
            try:
                self._ray.init(**settings)
            except Exception as error:  # a wrong setting, an address where nobody answers
                raise RunnerError(f"Ray cannot be used: {reason_of(error)}") from error
        try:
            task = self._ray.remote(**self._task)(work_in_job)
        except Exception as error:
            raise RunnerError(f"Ray cannot be used: {reason_of(error)}") from error
        return RayCrew(self._ray, task, assignments, ours=ours)


class RayCrew:
    """Tasks of Ray, replaced when they end while trials wait.

    Args:
        ray: Ray.
        task: What runs a worker.
        assignments: One for each place that a worker can take.
        ours: Whether the connection is to be closed in the end.
    """

    def __init__(self, ray: Any, task: Any, assignments: Sequence[Assignment], *, ours: bool) -> None:
        self._ray = ray
        self._task = task
        self._assignments = assignments
        self._ours = ours
        self._tasks: dict[int, tuple[Any, float]] = {}
        self._futile = Futile("`ray logs` tells more")

    def tend(self, wanted: int) -> int:
        """See `Crew`."""
        for place, (task, since) in list(self._tasks.items()):
            done, _ = self._ray.wait([task], timeout=0)
            if done:
                del self._tasks[place]
                self._note(place, task, since)
        free = [place for place in range(len(self._assignments)) if place not in self._tasks]
        for place in free[: max(wanted - len(self._tasks), 0)]:
            self._tasks[place] = (self._task.remote(self._assignments[place], tuple(sys.path)), time.time())
        return len(self._tasks)

    def _note(self, place: int, task: Any, since: float) -> None:
        how = None
        try:
            self._ray.get(task)
        except Exception as error:  # of the worker, or that it died
            how = f"with {reason_of(error)}"
        with Store(self._assignments[place].store, create=False) as store:
            begun = store.begun_since(self._assignments[place].keys, since)
        self._futile.note(None if begun else how)

    def stop(self) -> None:
        """See `Crew`."""
        tasks = [task for task, _ in self._tasks.values()]
        for task in tasks:
            self._ray.cancel(task)  # as an interrupt, so that the trial is put back
        if tasks:
            self._ray.wait(tasks, num_returns=len(tasks), timeout=STOP_SECONDS)
        self._tasks.clear()
        if self._ours:
            self._ray.shutdown()
