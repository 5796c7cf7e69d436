"""Checkpoints: written whole or not at all, read only if nothing in them was damaged."""

from __future__ import annotations

import contextlib
import io
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from varshift.trials import TrialError

_NAME = re.compile(r"epoch-(\d+)\.pt")
# One for the worst case: that the latest is damaged.
_KEPT = 2


class Checkpoints:
    """The checkpoints of one run, in a folder of its own.

    Each is a file of `torch.save` that `torch.load` reads with ``weights_only=True``. It is written under
    another name, brought to the disk and then renamed, so that a file of the name ``epoch-00003.pt`` is whole
    however the process ended; what the disk did to it later shows in the checksums within. The latest two are
    kept.

    Args:
        folder: The folder; None keeps nothing.
        run: What it is a run of; a checkpoint of another one is refused.
        warn: Told of each checkpoint that is passed over, its name and what is wrong.
    """

    def __init__(self, folder: Path | None, run: str, warn: Callable[[str, str], None]) -> None:
        self._folder, self._run, self._warn = folder, run, warn

    def latest(self) -> dict[str, Any] | None:
        """What was saved last, on the CPU, or None where there is nothing that can be read.

        Raises:
            TrialError: If it is of another run.
        """
        for path in reversed(self._files()):
            try:
                found = _read(path)
            except Exception as error:  # a damaged file makes zip, pickle and torch raise nearly anything
                self._warn(path.name, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
                continue
            if found["run"] != self._run:
                raise TrialError(
                    f"{path} is a checkpoint of another run ({found['run']} and not {self._run}): use "
                    "another folder, or empty this one."
                )
            return found["state"]
        return None

    def save(self, epoch: int, state: dict[str, Any]) -> None:
        """Saves the state after so many epochs, and removes what has become too old.

        Raises:
            TrialError: If the disk is full or cannot be written to.
        """
        if self._folder is None:
            return
        path = self._folder / f"epoch-{epoch:05d}.pt"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            _write(path, {"run": self._run, "state": state})
        except OSError as error:
            raise TrialError(
                f"{path} cannot be written ({error.strerror or error}): make room or pass another folder, "
                f"and try again. What was done up to epoch {epoch - 1} is kept."
            ) from error
        # Drafts are left over where a process was killed while it wrote.
        for old in [*self._files()[:-_KEPT], *self._folder.glob(".epoch-*")]:
            with contextlib.suppress(OSError):
                old.unlink()

    def _files(self) -> list[Path]:
        if self._folder is None or not self._folder.is_dir():
            return []
        found = [(match, path) for path in self._folder.iterdir() if (match := _NAME.fullmatch(path.name))]
        return [path for _, path in sorted((int(match[1]), path) for match, path in found)]


def _read(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"the checksum of '{damaged}' in it is wrong")
    found = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(found, dict) or not {"run", "state"} <= set(found):
        raise ValueError("it holds something else")
    return found


def _write(path: Path, content: dict[str, Any]) -> None:
    # Beside the final name, with the process in its own: several may be at it by mistake.
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    # In memory first: torch's own writer hides what the system says of a full disk.
    whole = io.BytesIO()
    torch.save(content, whole)
    try:
        with open(draft, "wb") as file:
            file.write(whole.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
        _settle(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise


def _settle(folder: Path) -> None:
    """Brings the new name itself to the disk, where the system can do that for folders."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
