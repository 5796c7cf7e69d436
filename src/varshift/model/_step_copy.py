"""Copies of a training step: the function with all that it holds, so that it acts on a copy of a model."""

from __future__ import annotations

import io
import logging
import queue
import socket
import subprocess
import sys
import sysconfig
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from varshift.model._copy import ModelCopier
from varshift.model._tensors import TensorCopier
from varshift.model._unwrap import compiled_from

_LEFT = (types.ModuleType, type, types.BuiltinFunctionType, logging.Logger)
# What acts on the world outside: nothing that it does could be undone.
_OUTSIDE = (io.IOBase, socket.socket, subprocess.Popen, threading.Thread, queue.Queue)
_WRITERS = frozenset(
    [
        *("open", "save", "savez", "dump", "to_csv", "save_file", "save_model", "save_checkpoint"),
        *(
            "save_pretrained",
            "save_state",
            "write_text",
            "write_bytes",
            "barrier",
            "all_reduce",
            "all_gather",
        ),
    ]
)
_TRACKERS = frozenset(
    ["wandb", "mlflow", "comet_ml", "neptune", "clearml", "swanlab", "trackio", "aim", "requests"]
)
_HERE = str(Path(__file__).resolve().parents[1])
_LIBRARIES = tuple(
    {_HERE, *(str(Path(sysconfig.get_path(name))) for name in ("stdlib", "platstdlib", "purelib", "platlib"))}
)


class Unsafe(Exception):  # noqa: N818 - a reason, handled where the step is asked for
    """A step that cannot be run without a trace; the message says why, after "it"."""


class StepCopier(ModelCopier):
    """Copies a training step with everything that it holds, besides a model.

    Optimisers, schedulers and scalers are copied, functions get variables of their own, global ones too, and
    objects are copied with their attributes. What cannot be had twice, or acts on the world outside, makes
    the step unsafe.

    Args:
        tensors: How tensors are copied.

    Attributes:
        globals: Containers that code of the step can reach and that are not copied: they have to be restored.
        optimizers: The copies of the optimisers that were found.
    """

    def __init__(self, tensors: TensorCopier) -> None:
        super().__init__(tensors)
        self._scopes: dict[int, dict[str, Any]] = {}
        self._looked_at: set[int] = set()
        self.globals: list[Any] = []
        self.optimizers: list[Optimizer] = []

    def copy_step(self, step: Any) -> Any:
        """The copy of a step; the model has been copied before.

        Raises:
            Unsafe: If it cannot be run without a trace.
        """
        before = len(self.shared)
        twin = self.copy(step)
        if len(self.shared) > before:
            raise Unsafe(f"holds a {type(self.shared[before]).__name__}, of which there is only one")
        return twin

    def copy(self, value: Any) -> Any:
        """The copy of a value; the same one whenever it is asked for."""
        if id(value) in self._memo and id(value) not in self._unfilled:
            return self._memo[id(value)]
        if isinstance(value, types.BuiltinFunctionType) and _owner_of(value) is not None:
            return getattr(self.copy(_owner_of(value)), value.__name__)  # the `append` of a list
        if isinstance(value, _LEFT) or _is_standard_stream(value):
            return value
        if isinstance(value, _OUTSIDE):
            raise Unsafe(f"holds a {type(value).__name__}")
        if isinstance(value, types.FunctionType):
            return self._rebound(value)
        if isinstance(value, types.MethodType):
            self._alive.append(value)
            return types.MethodType(self.copy(value.__func__), self.copy(value.__self__))
        if not isinstance(value, (Tensor, int, float, str, bytes)):
            self._look_at_class(type(value))
        if isinstance(value, (Optimizer, LRScheduler)):
            return self._by_attributes(value)
        return super().copy(value)

    def _by_attributes(self, value: Any) -> Any:
        twin = self._memo[id(value)] = object.__new__(type(value))
        self._alive.append(value)
        self._tree[id(value)] = value  # schedulers refer to their optimisers weakly
        for name, item in vars(value).items():
            twin.__dict__[name] = self.copy(item)
        if isinstance(value, Optimizer):
            self.optimizers.append(twin)
        return twin

    def _rebound(self, function: types.FunctionType) -> Any:
        inner = compiled_from(function)
        if inner is not None:
            return self.copy(inner)
        theirs = not _is_library(function.__code__)
        if not theirs and not function.__closure__:
            return function
        twin_scope = self._scope(function) if theirs else function.__globals__
        cells = tuple(map(self._cell, function.__closure__ or ()))
        twin = types.FunctionType(function.__code__, twin_scope, function.__name__, None, cells or None)
        self._memo[id(function)] = twin
        self._alive.append(function)
        twin.__defaults__ = self.copy(function.__defaults__)
        twin.__kwdefaults__ = self.copy(function.__kwdefaults__)
        twin.__qualname__, twin.__module__ = function.__qualname__, function.__module__
        for old, cell in zip(function.__closure__ or (), cells, strict=True):
            self._fill(old, cell)
        twin.__dict__.update({name: self.copy(item) for name, item in vars(function).items()})
        if theirs:
            for name, item in _named(function.__code__, function.__globals__):
                if isinstance(item, types.ModuleType):
                    self._look_at_module(item, function.__code__)
                else:
                    twin_scope[name] = self.copy(item)
        return twin

    def _scope(self, function: types.FunctionType) -> dict[str, Any]:
        _refuse_writers(function.__code__)
        scope = function.__globals__
        if id(scope) not in self._scopes:
            self._alive.append(scope)
            self._scopes[id(scope)] = dict(scope)
        return self._scopes[id(scope)]

    def _cell(self, cell: types.CellType) -> types.CellType:
        if id(cell) not in self._cells:
            self._cells[id(cell)] = types.CellType()
            self._alive.append(cell)
        return self._cells[id(cell)]

    def _fill(self, old: types.CellType, cell: types.CellType) -> None:
        if id(cell) in self._looked_at:
            return
        self._looked_at.add(id(cell))
        try:
            value = old.cell_contents
        except ValueError:  # not set yet
            return
        cell.cell_contents = self.copy(value)

    # -- code whose global variables cannot be exchanged ---------------------------------------------------

    def _look_at_class(self, cls: type) -> None:
        """Methods are found in their class, which is not copied: what they use must be harmless."""
        for base in cls.__mro__:
            if id(base) in self._looked_at or base.__module__.partition(".")[0] in ("builtins", "torch"):
                continue
            self._looked_at.add(id(base))
            for item in vars(base).values():
                function = getattr(item, "__func__", item)
                if isinstance(item, property):
                    function = item.fget
                if isinstance(function, types.FunctionType):
                    self._look_at_function(function)

    def _look_at_function(self, function: types.FunctionType) -> None:
        code = function.__code__
        if id(code) in self._looked_at or _is_library(code):
            return
        self._looked_at.add(id(code))
        _refuse_writers(code)
        if any(name in function.__globals__ for name in _stored(code)):
            raise Unsafe(f"writes global variables in {function.__qualname__}")
        for name, item in _named(code, function.__globals__):
            self._look_at(name, item, code)
        for cell in function.__closure__ or ():
            self._look_at("a variable", getattr(cell, "cell_contents", None), code)

    def _look_at_module(self, module: types.ModuleType, code: types.CodeType) -> None:
        file = getattr(module, "__file__", None)
        if file is None or _in_library(file):
            return
        for name, item in _named(code, vars(module)):
            self._look_at(f"{module.__name__}.{name}", item, code)

    def _look_at(self, name: str, item: Any, code: types.CodeType) -> None:
        if _is_state(item):
            raise Unsafe(f"uses {name}, a global {type(item).__name__}, where it cannot be exchanged")
        if isinstance(item, types.ModuleType):
            self._look_at_module(item, code)
        elif isinstance(item, types.FunctionType):
            self._look_at_function(item)
        elif isinstance(item, (list, dict, set, Tensor)):
            self.globals.append(item)
        elif isinstance(item, _OUTSIDE) and not _is_standard_stream(item):
            raise Unsafe(f"uses {name}, a {type(item).__name__}")
        elif not isinstance(item, _LEFT) and hasattr(item, "__dict__"):
            held = [value for value in vars(item).values() if _is_state(value)]
            if held:
                raise Unsafe(f"uses {name}, which holds a {type(held[0]).__name__}")
            self.globals.append(item)


def _named(code: types.CodeType, scope: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The global variables that code names, that of the functions inside it included."""
    for name in dict.fromkeys(name for part in _codes(code) for name in part.co_names):
        if name in scope:
            yield name, scope[name]


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _stored(code: types.CodeType) -> Iterator[str]:
    import dis

    for part in _codes(code):
        for step in dis.get_instructions(part):
            if step.opname in ("STORE_GLOBAL", "DELETE_GLOBAL"):
                yield step.argval


def _refuse_writers(code: types.CodeType) -> None:
    names = {name for part in _codes(code) for name in part.co_names}
    found = sorted(names & (_WRITERS | _TRACKERS))
    if found:
        raise Unsafe(f"calls '{found[0]}', which acts outside this process")


def _is_library(code: types.CodeType) -> bool:
    return _in_library(code.co_filename)


def _in_library(file: str) -> bool:
    return file.startswith(("<frozen", *_LIBRARIES)) or "site-packages" in file


def _is_standard_stream(value: Any) -> bool:
    return any(value is stream for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__))


def _is_state(value: Any) -> bool:
    """Whether something belongs to a training run: a copy of the step must have its own."""
    if isinstance(value, nn.Module):
        return any(True for _ in (*value.parameters(), *value.buffers()))
    return isinstance(value, (Optimizer, LRScheduler)) or (isinstance(value, Tensor) and value.requires_grad)


def _owner_of(function: types.BuiltinFunctionType) -> Any:
    owner = getattr(function, "__self__", None)
    return None if isinstance(owner, (types.ModuleType, type)) else owner
