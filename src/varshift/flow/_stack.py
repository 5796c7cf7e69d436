"""Who called an operation: its Python frames and the module at work, without walking the whole stack."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from types import CodeType, FrameType
from typing import Any, TypeVar

from torch import nn

from varshift.flow._raw import Frame
from varshift.flow._source import is_foreign
from varshift.flow._types import CallFrame

_Result = TypeVar("_Result")

_RESUMED = 0x20 | 0x80 | 0x200  # code flags of generators, coroutines and asynchronous generators


class Call:
    """A position in the code of one frame, with the calls that led there.

    Attributes:
        module: Path of the module at work there.
    """

    __slots__ = ("_code", "_frames", "_instruction", "_parent", "module")

    def __init__(self, parent: Call | None, code: CodeType | None, instruction: int, module: str) -> None:
        self._parent = parent
        self._code = code
        self._instruction = instruction
        self._frames: tuple[Frame, ...] | None = None
        self.module = module

    def frames(self) -> tuple[Frame, ...]:
        """The user's frames outermost first, as ``(file, line)``; decoded when they are first asked for."""
        chain: list[Call] = []
        call: Call | None = self
        while call is not None and call._frames is None:
            chain.append(call)
            call = call._parent
        frames: tuple[Frame, ...] = () if call is None or call._frames is None else call._frames
        for call in reversed(chain):
            if call._code is not None and not _foreign(call._code):
                frames = (*frames, (call._code.co_filename, _line(call._code, call._instruction)))
            call._frames = frames
        return frames

    def call_frames(self) -> tuple[CallFrame, ...]:
        """The user's calls outermost first, each with the module at work and the place of its expression."""
        calls: list[CallFrame] = []
        call: Call | None = self
        while call is not None:
            if call._code is not None and not _foreign(call._code):
                calls.append(_call_frame(call._code, call._instruction, call.module))
            call = call._parent
        return tuple(reversed(calls))

    def way(self) -> tuple[Any, ...]:
        """What identifies this position and all the calls that led there."""
        return self._positions(lambda call: True)

    def place(self) -> tuple[Any, ...]:
        """What identifies this position inside its module."""
        return self._positions(lambda call: call.module == self.module)

    def _positions(self, inside: Callable[[Call], bool]) -> tuple[Any, ...]:
        positions = []
        call: Call | None = self
        while call is not None and inside(call):
            code = call._code
            if code is not None:
                positions.append((code.co_filename, code.co_firstlineno, code.co_name, call._instruction))
            call = call._parent
        return tuple(positions)


class CallStack:
    """Names the place of one operation after another.

    The frames of the last operation are kept: only those that are new since then are looked at, so that the
    price of an operation does not grow with the depth of the network. A frame on the stack was called once,
    hence its callers are where they were; generators are the exception and are looked at every time.
    """

    def __init__(self, model: nn.Module, names: dict[str, str], base: FrameType) -> None:
        self._modules = {
            id(module): (module, names.get(path, path)) for path, module in model.named_modules()
        }
        root = Call(None, None, 0, "")
        # Per frame on the stack, outermost first: the frame, the call that made it, and its module.
        self._stack: list[tuple[FrameType, Call, str]] = [(base, root, "")]
        self._places: dict[FrameType, int] = {base: 0}
        self._last: tuple[FrameType, int, Call] | None = None

    def locate(self, frame: FrameType | None) -> Call:
        """The place of an operation that a frame is about to run."""
        last = self._last
        if last is not None and frame is last[0] and last[0].f_lasti == last[1]:
            return last[2]
        places, stack = self._places, self._stack
        innermost = frame
        fresh: list[FrameType] = []
        place = 0
        while frame is not None:
            found = places.get(frame)
            if found is not None:
                place = found
                break
            fresh.append(frame)
            frame = frame.f_back
        if len(stack) > place + 1:
            for returned, _, _ in stack[place + 1 :]:
                places.pop(returned, None)
            del stack[place + 1 :]
        known, caller, module = stack[place]
        call = Call(caller, known.f_code if place else None, known.f_lasti, module)
        for frame in reversed(fresh):
            module = self._module(frame, module)
            stack.append((frame, call, module))
            if not frame.f_code.co_flags & _RESUMED:
                places[frame] = len(stack) - 1
            call = Call(call, frame.f_code, frame.f_lasti, module)
        if innermost is not None and not innermost.f_code.co_flags & _RESUMED:
            self._last = (innermost, innermost.f_lasti, call)
        return call

    def forget(self) -> None:
        """Lets go of the frames and of all that their variables hold."""
        self._stack.clear()
        self._places.clear()
        self._last = None

    def _module(self, frame: FrameType, caller: str) -> str:
        """The module whose method a frame runs, or that of its caller."""
        code = frame.f_code
        if not code.co_argcount:
            return caller
        first: Any = frame.f_locals.get(code.co_varnames[0])
        entry = self._modules.get(id(first))
        if entry is None or not _is_method(type(first), code.co_name):
            return caller  # a function that is handed a module is no part of that module
        return entry[1]


@lru_cache(maxsize=4096)
def _is_method(cls: type, name: str) -> bool:
    return any(name in vars(base) for base in cls.__mro__)


def _per_code(function: Callable[[CodeType], _Result]) -> Callable[[CodeType], _Result]:
    """Remembers results by the code object itself: equal ones may be of different files and columns."""
    results: dict[int, tuple[CodeType, _Result]] = {}

    def remembered(code: CodeType) -> _Result:
        entry = results.get(id(code))
        if entry is None:
            entry = results[id(code)] = code, function(code)  # alive, so that its number stays its own
        return entry[1]

    return remembered


@_per_code
def _foreign(code: CodeType) -> bool:
    return is_foreign(code.co_filename)


@_per_code
def _call_frames(code: CodeType) -> dict[tuple[int, str], CallFrame]:
    return {}


def _call_frame(code: CodeType, instruction: int, module: str) -> CallFrame:
    frames = _call_frames(code)
    frame = frames.get((instruction, module))
    if frame is None:
        frame = frames[instruction, module] = _new_call_frame(code, instruction, module)
    return frame


def _new_call_frame(code: CodeType, instruction: int, module: str) -> CallFrame:
    positions = _positions(code)
    place = instruction // 2
    line, end_line, column, end_column = positions[place] if 0 <= place < len(positions) else (None,) * 4
    line = line if line is not None else code.co_firstlineno
    return CallFrame(
        module=module,
        file=code.co_filename,
        function=code.co_qualname,
        first_line=code.co_firstlineno,
        line=line,
        end_line=end_line if end_line is not None else line,
        column=column,
        end_column=end_column,
    )


@_per_code
def _positions(code: CodeType) -> tuple[tuple[int | None, int | None, int | None, int | None], ...]:
    return tuple(code.co_positions())


@_per_code
def _lines(code: CodeType) -> tuple[int | None, ...]:
    return tuple(first for first, *_ in code.co_positions())


def _line(code: CodeType, instruction: int) -> int:
    lines = _lines(code)
    place = instruction // 2
    line = lines[place] if 0 <= place < len(lines) else None
    return line if line is not None else code.co_firstlineno
