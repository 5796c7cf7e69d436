"""Holds signals back while state changes hands, so that Ctrl-C cannot leave half of a change behind."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any, TypeVar

_Function = TypeVar("_Function", bound=Callable[..., Any])

_protected: set[CodeType] = set()
_handlers: dict[int, Any] = {}  # the process's own, while ours are installed
_pending: list[int] = []
_holders: list[object] = []


def protected(function: _Function) -> _Function:
    """Marks a function that no signal interrupts, from its start on, while signals are watched."""
    _protected.add(function.__code__)
    return function


def watch_signals(holder: object) -> None:
    """Puts signal handlers written in Python after those of `holder`: they wait for protected functions.

    Does nothing outside the main thread, to which Python delivers its signals.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    _holders.append(holder)
    for number in signal.valid_signals():
        handler = signal.getsignal(number)
        if callable(handler) and handler is not _handle and not isinstance(handler, signal.Handlers):
            _handlers[number] = handler
            signal.signal(number, _handle)


def release_signals(holder: object) -> None:
    """Gives the handlers back once the last holder is gone, and delivers what waited."""
    if not any(item is holder for item in _holders):
        return
    _holders[:] = [item for item in _holders if item is not holder]
    if _holders:
        return
    for number, handler in list(_handlers.items()):
        if signal.getsignal(number) is _handle:  # else the user installed another one meanwhile
            signal.signal(number, handler)
    waiting, _pending[:] = list(_pending), []
    handlers = dict(_handlers)
    _handlers.clear()
    for number in waiting:
        handlers[number](number, None)


def _handle(number: int, frame: FrameType | None) -> None:
    caller = frame
    while caller is not None:
        if caller.f_code in _protected:
            if number not in _pending:
                _pending.append(number)
            return
        caller = caller.f_back
    handler = _handlers.get(number, signal.default_int_handler)
    handler(number, frame)
