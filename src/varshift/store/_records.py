"""What a store tells: claimed trials, results, and how far things are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

State = Literal["queued", "running", "done", "failed"]


@dataclass(frozen=True, slots=True)
class Claimed:
    """A trial that one worker alone may run now.

    Attributes:
        key: Key of the trial.
        data: The trial as plain data.
        title: A few words for it.
        claim: The claim, which all that the worker says about the trial is checked against.
        attempt: Which attempt it is, from 1.
    """

    key: str
    data: Any
    title: str
    claim: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Result:
    """A finished trial.

    Attributes:
        measurements: What it measured.
        provenance: What it ran on: device, versions, threads, date.
        seconds: How long it took, all attempts together.
    """

    measurements: Mapping[str, Any]
    provenance: Mapping[str, Any]
    seconds: float


@dataclass(frozen=True, slots=True)
class Run:
    """One trial in the store.

    Attributes:
        key: Key of the trial.
        title: A few words for it.
        state: Where it stands.
        attempts: How often it was begun.
        seconds: How long it ran, up to the last sign of life.
        reason: Why it failed; empty if it did not.
        machine: Where it runs or ran last.
    """

    key: str
    title: str
    state: State
    attempts: int
    seconds: float
    reason: str = ""
    machine: str = ""


@dataclass(frozen=True, slots=True)
class Progress:
    """How many trials stand where.

    Attributes:
        counts: Number of trials by state.
        remaining_seconds: What is left for one worker, judged by the trials that are done; None before the
            first.
        running: Titles of those that run now.
    """

    counts: Mapping[State, int]
    remaining_seconds: float | None = None
    running: tuple[str, ...] = field(default=())

    @property
    def total(self) -> int:
        """All trials."""
        return sum(self.counts.values())

    @property
    def open(self) -> int:
        """Trials that are neither done nor failed."""
        return self.counts.get("queued", 0) + self.counts.get("running", 0)
