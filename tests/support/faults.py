"""Faults to inject into a call: exceptions at the n-th event of a kind, interrupts at any line or moment."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

PACKAGE = os.sep + os.path.join("src", "varshift") + os.sep


class CustomError(Exception):
    """An exception of a library of the user's."""


EXCEPTIONS: tuple[type[BaseException], ...] = (
    *(RuntimeError, ValueError, TypeError, KeyError, MemoryError, RecursionError, AssertionError),
    *(StopIteration, SystemExit, CustomError),
)


class Fuse:
    """Raises at the n-th event.

    Args:
        error: What to raise.
        count: Which event.
    """

    def __init__(self, error: type[BaseException], count: int) -> None:
        self._error, self._left = error, count
        self.blown = False

    def __deepcopy__(self, memo: Any) -> Fuse:
        return self

    def event(self) -> None:
        """Counts one event."""
        self._left -= 1
        if self._left == 0:
            self.blown = True
            raise self._error("injected")


class FailingOperation(TorchDispatchMode):
    """Fails at the n-th operation that torch dispatches."""

    def __init__(self, fuse: Fuse) -> None:
        super().__init__()
        self._fuse = fuse

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._fuse.event()
        return func(*args, **(kwargs or {}))


class FailingCall(TorchFunctionMode):
    """Fails at the n-th call of a function of torch."""

    def __init__(self, fuse: Fuse) -> None:
        super().__init__()
        self._fuse = fuse

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._fuse.event()
        return func(*args, **(kwargs or {}))


class FailingLoader:
    """Fails at the n-th batch."""

    def __init__(self, data: list[Any], fuse: Fuse) -> None:
        self._data, self._fuse = data, fuse

    def __iter__(self) -> Iterator[Any]:
        for batch in self._data:
            self._fuse.event()
            yield batch

    def __len__(self) -> int:
        return len(self._data)


def failing_loss(fuse: Fuse) -> Callable[[Any, Any], Tensor]:
    """A loss that fails at the n-th call."""

    def loss(outputs: Any, targets: Any) -> Tensor:
        fuse.event()
        return nn.functional.cross_entropy(outputs, targets)

    return loss


def failing_forward(fuse: Fuse) -> Callable[[nn.Module, Any], Any]:
    """A function that runs the model and fails at the n-th call."""

    def forward(model: nn.Module, batch: Any) -> Any:
        fuse.event()
        return model(batch[0])

    return forward


@contextlib.contextmanager
def interrupted_lines(count: int, times: int = 1, *, by_signal: bool = False) -> Iterator[list[str]]:
    """Interrupts at the n-th line of the package that runs, and once more n lines later.

    Args:
        count: Which line.
        times: How many interrupts.
        by_signal: Send the signal of Ctrl-C instead of raising KeyboardInterrupt out of nowhere.
    """
    places: list[str] = []
    left = count

    def local(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal left
        if event == "line" and len(places) < times:
            left -= 1
            if left <= 0:
                left = max(1, count // 4)
                places.append(f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}")
                if not by_signal:
                    raise KeyboardInterrupt("injected")
                signal.raise_signal(signal.SIGINT)
        return local

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        return local if PACKAGE in frame.f_code.co_filename else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield places
    finally:
        sys.settrace(before)


class TimedInterrupts:
    """Raises KeyboardInterrupt from real timers, the first after some seconds, the next soon after.

    Args:
        delay: Seconds to the first.
        times: How many.
    """

    def __init__(self, delay: float, times: int = 1) -> None:
        self._delay, self._left = delay, times
        self._before: Any = None

    def __enter__(self) -> None:
        self._before = signal.signal(signal.SIGALRM, self._handle)
        signal.setitimer(signal.ITIMER_REAL, self._delay)

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends it; again where the timer has cut its end short."""
        self._left = 0
        signal.setitimer(signal.ITIMER_REAL, 0)
        if signal.getsignal(signal.SIGALRM) == self._handle:
            signal.signal(signal.SIGALRM, self._before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._left <= 0:
            return
        self._left -= 1
        if self._left:
            signal.setitimer(signal.ITIMER_REAL, self._delay / 50 + 1e-5)
        raise KeyboardInterrupt("injected")
