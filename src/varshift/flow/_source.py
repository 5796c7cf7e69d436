"""From the Python frames of an operation to the one line of the user's code that it belongs to."""

from __future__ import annotations

import inspect
import os
import re
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn

from varshift._sites import Source
from varshift.flow._raw import Frame, Trace
from varshift.flow._types import CallFrame

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_TORCH = str(Path(torch.__file__).parent) + os.sep
_ROOMS = Path(__file__).parent.parent
_OURS = (_TORCH, *(str(_ROOMS / room) + os.sep for room in ("flow", "model", "fixes", "functional")), "<")
_SESSIONS = ("<ipython-input-", "<python-input-", "<doctest ")  # typed in, with a source


class TextTrace:
    """The calls that led to an operation, as the text of a stack trace."""

    def __init__(self, text: str) -> None:
        self._text = text

    def frames(self) -> tuple[Frame, ...]:
        """Its frames outermost first."""
        return _parse(self._text)

    def call_frames(self) -> tuple[CallFrame, ...]:
        """None: the text has lines only."""
        return ()

    def way(self) -> str:
        """The text."""
        return self._text

    def place(self) -> str:
        """The text: it does not tell modules apart."""
        return self._text


@lru_cache(maxsize=4096)
def _parse(text: str) -> tuple[Frame, ...]:
    return tuple((file, int(line)) for file, line in _FRAME.findall(text))


def is_foreign(file: str) -> bool:
    """Whether a frame belongs to torch or to the tracer, not to the user."""
    return file.startswith(_OURS) and not file.startswith(_SESSIONS)


class SourceFinder:
    """Finds the source line of operations.

    The line is the innermost frame outside torch. Where the operation is the whole purpose of a module
    (dropout, drop path, a norm), the frames of that module's own ``forward`` and below say nothing new, and
    the line that calls the module is given instead.
    """

    def __init__(self, modules: dict[str, nn.Module]) -> None:
        self._modules = modules
        self._ranges: dict[type, tuple[str, int, int] | None] = {}
        self._cache: dict[tuple[tuple[Frame, ...], str], Source | None] = {}

    def operation(self, trace: Trace | None, module: str) -> Source | None:
        """The line of an operation: the calling line where its module exists for this operation only."""
        found = self._modules.get(module)
        plain = found is not None and next(found.children(), None) is None
        plain = plain and next(found.parameters(recurse=False), None) is None  # type: ignore[union-attr]
        return self.line(trace, module if plain else "")

    def line(self, trace: Trace | None, owner: str = "") -> Source | None:
        """The line of an operation; `owner` is the module whose calling line is wanted, or ``""``."""
        frames = trace.frames() if trace is not None else ()
        key = (frames, owner)
        if key not in self._cache:
            self._cache[key] = self._find(frames, owner)
        return self._cache[key]

    def _find(self, frames: tuple[Frame, ...], owner: str) -> Source | None:
        kept = frames
        module = self._modules.get(owner) if owner else None
        if module is not None:
            own = self._forward_range(type(module))
            if own is not None:
                file, first, last = own
                cut = next((i for i, (f, n) in enumerate(frames) if f == file and first <= n <= last), None)
                kept = frames[:cut] if cut is not None else frames
        for candidates in (kept, frames):
            for file, line in reversed(candidates):
                if not is_foreign(file):
                    return Source(file, line)
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
