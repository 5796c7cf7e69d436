"""Workers as jobs of a SLURM cluster, through submitit."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from varshift.runner._assignment import Assignment
from varshift.runner._errors import RunnerError
from varshift.runner._futile import Futile
from varshift.runner._job import work_in_job
from varshift.runner._work import reason_of
from varshift.store import Store

STOP_SECONDS = 30.0
# Settings that submitit names alike for every cluster; all others begin with the cluster's name.
_SHARED = (
    "name",
    "nodes",
    "mem_gb",
    "timeout_min",
    "cpus_per_task",
    "gpus_per_node",
    "tasks_per_node",
    "stderr_to_stdout",
)


class SlurmExecutor:
    """Submits each worker as a job; jobs that end while trials wait are replaced.

    The store must lie where all nodes see it.

    Args:
        options: Settings of submitit, such as ``timeout_min``, ``gpus_per_node``, ``cpus_per_task``,
            ``mem_gb`` and SLURM's own, such as ``partition``; and ``cluster``: ``slurm`` by default,
            ``local`` for jobs that are processes of this machine.

    Raises:
        RunnerError: If submitit is not installed.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        try:
            import submitit
        except ImportError as error:
            raise RunnerError('SLURM needs submitit: pip install "varshift[slurm]".') from error
        self._submitit = submitit
        self._cluster = str(options.get("cluster", "slurm"))
        self._settings = {
            name if name in _SHARED or name.startswith("slurm_") else f"slurm_{name}": value
            for name, value in options.items()
            if name != "cluster"
        }

    def crew(self, assignments: Sequence[Assignment]) -> JobCrew:
        """See `Executor`.

        Raises:
            RunnerError: If there is no such cluster here, or submitit knows no such setting.
        """
        folder = assignments[0].store / "jobs"
        try:
            executor = self._submitit.AutoExecutor(folder=str(folder), cluster=self._cluster)
            executor.update_parameters(**{"name": "varshift", **self._settings})
        except Exception as error:  # submitit raises all kinds
            raise RunnerError(f"SLURM cannot be used: {reason_of(error)}") from error
        return JobCrew(executor, assignments, folder)


@dataclass(frozen=True, slots=True)
class _Job:
    job: Any
    since: float


class JobCrew:
    """Jobs, replaced when they end while trials wait.

    Args:
        executor: Submitit's executor.
        assignments: One for each place that a worker can take.
        folder: Where the jobs write what they say.
    """

    def __init__(self, executor: Any, assignments: Sequence[Assignment], folder: Path) -> None:
        self._executor = executor
        self._assignments = assignments
        self._jobs: dict[int, _Job] = {}
        self._futile = Futile(f"their output is in {folder}")

    def tend(self, wanted: int) -> int:
        """See `Crew`."""
        for place, one in list(self._jobs.items()):
            if one.job.done():
                del self._jobs[place]
                self._note(place, one)
        free = [place for place in range(len(self._assignments)) if place not in self._jobs]
        for place in free[: max(wanted - len(self._jobs), 0)]:
            try:
                job = self._executor.submit(work_in_job, self._assignments[place], tuple(sys.path))
            except Exception as error:  # sbatch says no in many ways
                raise RunnerError(f"a job could not be submitted: {reason_of(error)}") from error
            self._jobs[place] = _Job(job, time.time())
        return len(self._jobs)

    def _note(self, place: int, one: _Job) -> None:
        try:
            error = one.job.exception()
        except Exception as lost:  # a job that was killed leaves nothing to read
            error = lost
        with Store(self._assignments[place].store, create=False) as store:
            begun = store.begun_since(self._assignments[place].keys, one.since)
        self._futile.note(None if error is None or begun else f"with {reason_of(error)}")

    def stop(self) -> None:
        """See `Crew`."""
        for one in self._jobs.values():
            with contextlib.suppress(Exception):  # one that has just ended cannot be cancelled
                one.job.cancel()
        deadline = time.monotonic() + STOP_SECONDS
        while self._jobs and time.monotonic() < deadline:
            self._jobs = {place: one for place, one in self._jobs.items() if not one.job.done()}
            time.sleep(0.1)
        self._jobs.clear()
