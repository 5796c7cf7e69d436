"""What trials record, for TensorBoard too."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from varshift.runner._errors import RunnerError

# Fields that say where in a training an event belongs, the first that is there.
_STEPS = ("step", "epoch")


class Board:
    """Writes the numbers of events as scalars.

    Args:
        folder: Folder of one trial.

    Raises:
        RunnerError: If TensorBoard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        check_board()
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder))
        self._count = 0

    def __call__(self, event: Mapping[str, Any]) -> None:
        step = next((int(event[name]) for name in _STEPS if name in event), self._count)
        self._count = step + 1
        for name, value in event.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool) and name not in _STEPS:
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Writes what is left."""
        self._writer.close()


def check_board() -> None:
    """Makes sure, before long work, that TensorBoard is there.

    Raises:
        RunnerError: If it is not installed.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise RunnerError('TensorBoard is not installed: pip install "varshift[tensorboard]".')
