"""Who draws random numbers of Python."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

_DRAWS = frozenset({"random", "getrandbits"})  # methods in C that all others go back to


class PythonDraws:
    """Notes who draws random numbers of Python, in this thread, while it is open.

    It listens as a profiler does. Where a profiler is at work it does not listen, and notes nothing.
    """

    def __init__(self, note: Callable[[FrameType, str], Any]) -> None:
        self._note = note
        self._listens = False

    def __enter__(self) -> PythonDraws:
        if sys.getprofile() is None:
            self._listens = True
            sys.setprofile(self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        if self._listens:
            sys.setprofile(None)

    def _hear(self, frame: FrameType, event: str, called: Any) -> None:
        if event != "c_call" or getattr(called, "__name__", "") not in _DRAWS:
            return
        if not isinstance(getattr(called, "__self__", None), random.Random):
            return
        function, caller = called.__name__, frame
        while caller.f_code.co_filename == random.__file__ and caller.f_back is not None:
            function, caller = caller.f_code.co_name, caller.f_back
        self._note(caller, "random" if function in ("random", "uniform") else function)
