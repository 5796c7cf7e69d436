"""Holds signals back while state changes hands, so that Ctrl-C cannot leave half of a change behind."""

from __future__ import annotations

import signal
import threading
import weakref
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any, TypeVar

_Function = TypeVar("_Function", bound=Callable[..., Any])

_SIGNALS = tuple(signal.valid_signals())
_protected: set[CodeType] = set()
_handlers: dict[int, Any] = {}  # the process's own, while ours are installed
_pending: list[int] = []
_holders: list[weakref.ref[Any]] = []


def protected(function: _Function) -> _Function:
    """Marks a function that no signal interrupts, from its start on, while signals are watched."""
    _protected.add(function.__code__)
    return function


class Holder:
    """Somebody for whom signals are watched; that ends with the holder itself, if not before."""


def watch_signals(holder: Holder) -> None:
    """Has signal handlers written in Python wait for protected functions, until `holder` releases them.

    Does nothing outside the main thread, to which Python delivers its signals.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    _holders.append(weakref.ref(holder, lambda _: release_signals(None)))
    for number in _SIGNALS:
        handler = signal.getsignal(number)
        if callable(handler) and handler is not _handle and not isinstance(handler, signal.Handlers):
            _handlers[number] = handler
            signal.signal(number, _handle)


def release_signals(holder: Holder | None) -> None:
    """Gives the handlers back once the last holder is gone, and delivers what waited."""
    if threading.current_thread() is not threading.main_thread():
        return
    _holders[:] = [item for item in _holders if item() not in (None, holder)]
    if _holders:
        return
    handlers, struck = dict(_handlers), None
    while _handlers:
        try:
            for number, handler in handlers.items():
                if signal.getsignal(number) is _handle:  # else the user installed another one meanwhile
                    signal.signal(number, handler)
            _handlers.clear()
        except BaseException as error:  # of a handler that has just been given back: the others follow first
            struck = error
    waiting, _pending[:] = list(_pending), []
    if struck is not None:
        raise struck
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
