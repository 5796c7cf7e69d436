"""One trial: all that decides its outcome, its seed included, and what it runs on."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from varshift._errors import VarshiftError
from varshift.trials._encode import decode, encode

# A figure, or a row of them (of all norms, of all epochs); nothing that is not finite.
Measurement = float | list[Any]
Measurements = Mapping[str, Measurement]


class TrialError(VarshiftError):
    """A trial came to no result; its reason is recorded and it can be tried again."""


def _nowhere(_: Mapping[str, Any]) -> None:
    return None


@dataclass(frozen=True, slots=True)
class Workbench:
    """What a trial runs on. None of this changes its outcome, beyond the rounding of another device.

    Attributes:
        device: Device to train on, as torch names it.
        folder: A folder of the trial's own, where it may keep checkpoints and finds those of an attempt that
            was interrupted; None where nothing is kept.
        record: Appends one event to the trial's log, as plain data.
        data_folder: Where the data sets lie; None for the default.
        precision: Precision of the training, in fabric's words: ``"32-true"`` or ``"bf16-mixed"``.
        compile: Compile networks.
        materials: Live objects that trials refer to by name, such as a network, data or a function, which are
            not part of what is stored; None where trials need none.
    """

    device: str = "cpu"
    folder: Path | None = None
    record: Callable[[Mapping[str, Any]], None] = field(default=_nowhere, repr=False)
    data_folder: Path | None = None
    precision: str = "32-true"
    compile: bool = False
    materials: Any = field(default=None, repr=False)


@dataclass(frozen=True)
class Trial(ABC):
    """Base of all trials: a frozen dataclass of plain values, and what to do with them.

    A field is None, a truth value, a number, a text, a tuple of such, or a frozen dataclass of such. Two
    trials with equal fields are one and the same: it is run once, however many tables ask for it.

    Attributes:
        seed: Seed of everything that is drawn.
    """

    seed: int

    @abstractmethod
    def run(self, workbench: Workbench) -> Measurements:
        """Runs the trial and returns what was measured: finite numbers, or lists of them, by name.

        It continues an interrupted attempt from the workbench's folder, to the same figures.

        Raises:
            TrialError: If it comes to no result, such as a diverged training.
        """

    @property
    def title(self) -> str:
        """A few words for lists and progress bars."""
        return f"{type(self).__name__} seed {self.seed}"

    @property
    def key(self) -> str:
        """Name of the trial by its content: the first 16 hexadecimal digits of a SHA-256."""
        text = json.dumps(encode(self), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def decode_trial(data: Any) -> Trial:
    """As `decode`, for a trial as a whole.

    Raises:
        VarshiftError: If it is none.
    """
    found = decode(data)
    if not isinstance(found, Trial):
        raise VarshiftError(f"a stored trial is a {type(found).__name__}: queue it again.")
    return found
