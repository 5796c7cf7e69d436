"""From the Python frames of an operation to the one line of the user's code that it belongs to."""

from __future__ import annotations

import inspect
import os
import re
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn

from varshift.flow._raw import Frame

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_TORCH = str(Path(torch.__file__).parent) + os.sep
_OURS = str(Path(__file__).parent) + os.sep
_BATCHES = str(Path(__file__).parent.parent / "model" / "_batches.py")


@lru_cache(maxsize=4096)
def parse_trace(trace: str) -> tuple[Frame, ...]:
    """Frames of the text of a stack trace, outermost first."""
    return tuple((file, int(line)) for file, line in _FRAME.findall(trace))


def is_foreign(file: str) -> bool:
    """Whether a frame belongs to torch or to the tracer, not to the user."""
    return file.startswith((_TORCH, _OURS, "<")) or file == _BATCHES


class SourceFinder:
    """Finds the source line of operations.

    The line is the innermost frame outside torch. Where the operation is the whole purpose of a module
    (dropout, drop path, a norm), the frames of that module's own ``forward`` and below say nothing new, and
    the line that calls the module is given instead.
    """

    def __init__(self, modules: dict[str, nn.Module]) -> None:
        self._modules = modules
        self._ranges: dict[type, tuple[str, int, int] | None] = {}
        self._cache: dict[tuple[str | tuple[Frame, ...], str], str | None] = {}

    def line(self, frames: str | tuple[Frame, ...], owner: str = "") -> str | None:
        """``"file:line"`` of an operation; `owner` is the module whose calling line is wanted, or ``""``."""
        key = (frames, owner)
        if key not in self._cache:
            self._cache[key] = self._find(frames, owner)
        return self._cache[key]

    def _find(self, frames: str | tuple[Frame, ...], owner: str) -> str | None:
        parsed = parse_trace(frames) if isinstance(frames, str) else frames
        kept = parsed
        module = self._modules.get(owner) if owner else None
        if module is not None:
            own = self._forward_range(type(module))
            if own is not None:
                file, first, last = own
                cut = next((i for i, (f, n) in enumerate(parsed) if f == file and first <= n <= last), None)
                kept = parsed[:cut] if cut is not None else parsed
        for candidates in (kept, parsed):
            for file, line in reversed(candidates):
                if not is_foreign(file):
                    return f"{file}:{line}"
        return None

    def _forward_range(self, cls: type) -> tuple[str, int, int] | None:
        if cls not in self._ranges:
            self._ranges[cls] = _lines(cls)
        return self._ranges[cls]


def _lines(cls: type) -> tuple[str, int, int] | None:
    forward = inspect.unwrap(getattr(cls, "forward", None) or object)
    code = getattr(forward, "__code__", None)
    if code is None:
        return None
    last = max((line for *_, line in code.co_lines() if line is not None), default=code.co_firstlineno)
    return code.co_filename, code.co_firstlineno, last
