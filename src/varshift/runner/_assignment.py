"""What a worker is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Assignment:
    """What workers are to do, and on what. It can be sent to another process or machine.

    Attributes:
        store: Folder of the store.
        keys: Trials that may be run.
        device: Device of this worker, as torch names it.
        data_folder: Where the data sets lie; None for the default.
        precision: Precision of the training, in fabric's words.
        compile: Compile networks.
        threads: Threads of torch; None for torch's own choice.
        tensorboard: Write what trials record for TensorBoard too.
        keep: Keep the checkpoints of finished trials.
        materials: What the trials need besides their own fields, see `Workbench`; never stored.
    """

    store: Path
    keys: tuple[str, ...]
    device: str = "cpu"
    data_folder: Path | None = None
    precision: str = "32-true"
    compile: bool = False
    threads: int | None = 1
    tensorboard: bool = False
    keep: bool = False
    materials: Any = None
