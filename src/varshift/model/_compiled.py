"""Whether code that `torch.compile` made can be reached from a model: nobody can listen in on it."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from typing import Any

from torch import nn

from varshift.model._unwrap import compiled_from

_DEEPEST = 3  # functions that call functions


def calls_compiled(model: nn.Module, *functions: Any) -> bool:
    """Whether a model or one of some functions may call a function or module that was compiled.

    Compiled functions among the global variables of a module's code cannot be replaced in a copy.

    Args:
        model: The model, as it will be run.
        functions: Functions of the user's that run with it; None is skipped.
    """
    if "torch._dynamo" not in sys.modules:  # nothing was compiled in this process
        return False
    seen: set[int] = set()
    for module in model.modules():
        attributes = vars(module)
        if attributes.get("_compiled_call_impl") is not None:
            return True
        if isinstance(attributes["_modules"].get("_orig_mod"), nn.Module):
            if compiled_from(attributes.get("forward")) is not None:  # no longer so in a copy
                return True
        elif any(_reaches(function, seen, 0) for function in _methods(module)):
            return True
    return any(_reaches(function, seen, 0) for function in functions)


def _methods(module: nn.Module) -> Iterator[Any]:
    """The functions of a module: its own, and those of its classes that it does not override."""
    own = vars(module)
    yield from (value for value in own.values() if isinstance(value, (types.FunctionType, types.MethodType)))
    for cls in type(module).__mro__:
        if not cls.__module__.startswith("torch."):
            for name, value in vars(cls).items():
                if name not in own and isinstance(value, types.FunctionType):
                    yield value


def _reaches(item: Any, seen: set[int], depth: int) -> bool:
    if id(item) in seen or depth > _DEEPEST:
        return False
    if isinstance(item, nn.Module):
        return isinstance(item._modules.get("_orig_mod"), nn.Module)
    if isinstance(item, types.MethodType):
        item = item.__func__
    if compiled_from(item) is not None:
        return True
    if not isinstance(item, types.FunctionType) or item.__module__.startswith("torch."):
        return False
    seen.add(id(item))
    scope = item.__globals__
    names = [scope[name] for name in item.__code__.co_names if name in scope]
    cells = [cell.cell_contents for cell in item.__closure__ or () if _is_set(cell)]
    return any(_reaches(value, seen, depth + 1) for value in (*names, *cells))


def _is_set(cell: types.CellType) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True
