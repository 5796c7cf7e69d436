"""Engines that start workers, by name."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from varshift.runner._assignment import Assignment
from varshift.runner._errors import RunnerError


class Crew(Protocol):
    """Workers that were started together."""

    def tend(self, wanted: int) -> int:
        """Looks after the workers that ended, starts more while fewer than `wanted` live.

        Returns:
            How many live, or wait for their turn, now.

        Raises:
            RunnerError: If workers keep ending before they begin.
        """
        ...

    def stop(self) -> None:
        """Interrupts all workers and waits until their trials are back in the queue."""
        ...


class Executor(Protocol):
    """An engine: processes of this machine, or jobs of a cluster."""

    def crew(self, assignments: Sequence[Assignment]) -> Crew:
        """A crew without any workers yet; they take the assignments in turn."""
        ...


# Each is imported only when it is used, for most of them need a package of their own.
_EXECUTORS = {
    "local": "varshift.runner._local:LocalExecutor",
    "slurm": "varshift.runner._slurm:SlurmExecutor",
    "ray": "varshift.runner._ray:RayExecutor",
}


def executor_names() -> tuple[str, ...]:
    """Names that `executor` knows."""
    return tuple(_EXECUTORS)


def executor(name: str, options: Mapping[str, Any] | None = None) -> Executor:
    """An engine by its name.

    Args:
        name: One of `executor_names`.
        options: Settings of the engine, such as SLURM's partition or Ray's address.

    Raises:
        RunnerError: If there is none of that name, its package is not installed, or it has no such setting.
    """
    if name not in _EXECUTORS:
        raise RunnerError(f"executor={name!r} must be one of {', '.join(_EXECUTORS)}.")
    module, _, kind = _EXECUTORS[name].partition(":")
    return getattr(importlib.import_module(module), kind)(dict(options or {}))
