"""Live functions with other code: scope, defaults, decorators and all else as they were."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from types import CellType, CodeType, FunctionType
from typing import Any

from torch._jit_internal import FunctionModifiers

from varshift.fixes._surgery import Refused


def innermost(value: Any) -> FunctionType | None:
    """The function under the decorators of an attribute of a class; None where there is none."""
    if isinstance(value, (staticmethod, classmethod)):
        value = value.__func__
    elif isinstance(value, property):
        value = value.fget
    elif isinstance(value, functools.cached_property):
        value = value.func
    try:
        value = inspect.unwrap(value) if callable(value) else value
    except ValueError:  # a circle
        return None
    return value if isinstance(value, FunctionType) else None


def methods_of(
    cls: type, is_wanted: Callable[[FunctionType], bool]
) -> Iterator[tuple[str, Any, FunctionType]]:
    """The methods that a class finds under their names, its own before those of its bases.

    Args:
        cls: The class.
        is_wanted: Says which functions to list.

    Yields:
        The name, what the class holds under it, and the function under its decorators.
    """
    for base in cls.__mro__:
        for name, held in vars(base).items():
            function = innermost(held)
            if function is None or not is_wanted(function):
                continue
            if inspect.getattr_static(cls, name) is held:  # else another class overrides it
                yield name, held, function


def with_code(function: FunctionType, code: CodeType) -> FunctionType:
    """A function that runs other code in the scope of an existing one."""
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    closure = tuple(cells[name] for name in code.co_freevars)
    new = FunctionType(code, function.__globals__, function.__name__, function.__defaults__, closure)
    return unscripted(_dressed(new, function))


def rewrapped(value: Any, old: FunctionType, new: FunctionType) -> Any:
    """What a class or a module holds for a function, with another function under the same decorators.

    Args:
        value: The function, or what decorators made of it.
        old: The function under the decorators.
        new: The one that takes its place.

    Raises:
        Refused: If a decorator does not hold the function in a way that can be copied.
    """
    if value is old:
        return new
    if isinstance(value, (staticmethod, classmethod)):
        return type(value)(rewrapped(value.__func__, old, new))
    if isinstance(value, property):
        return property(rewrapped(value.fget, old, new), value.fset, value.fdel, value.__doc__)
    if isinstance(value, functools.cached_property):
        copy = functools.cached_property(rewrapped(value.func, old, new))
        copy.attrname = value.attrname
        return copy
    copy = _copied(value, old, new, {}) if isinstance(value, FunctionType) else None
    if copy is None:
        kind = f"{value.__module__}.{value.__qualname__}" if isinstance(value, FunctionType) else repr(value)
        raise Refused(
            f"{old.__qualname__} is decorated by {kind}, which is not a plain wrapper around it: take the "
            "decorator off while the model is fixed."
        )
    return copy


def unscripted(function: Any) -> Any:
    """A function that TorchScript is not to compile: it reads source text, which has not been edited."""
    function._torchscript_modifier = FunctionModifiers.UNUSED
    return function


def _copied(
    wrapper: FunctionType, old: FunctionType, new: FunctionType, seen: dict[int, FunctionType | None]
) -> FunctionType | None:
    """A copy of a wrapper around another function; None if it does not hold the old one."""
    if wrapper is old:
        return new
    if id(wrapper) in seen:
        return seen[id(wrapper)]
    seen[id(wrapper)] = None
    cells: list[CellType] = []
    for cell in wrapper.__closure__ or ():
        content = cell_content(cell)
        copy = _copied(content, old, new, seen) if isinstance(content, FunctionType) else None
        cells.append(cell if copy is None else CellType(copy))
    if all(cell is before for cell, before in zip(cells, wrapper.__closure__ or (), strict=True)):
        return None
    result = FunctionType(
        wrapper.__code__, wrapper.__globals__, wrapper.__name__, wrapper.__defaults__, tuple(cells)
    )
    inner = getattr(wrapper, "__wrapped__", None)
    _dressed(result, wrapper)
    if isinstance(inner, FunctionType):
        result.__wrapped__ = _copied(inner, old, new, seen) or inner  # type: ignore[attr-defined]
    seen[id(wrapper)] = result
    return unscripted(result)


def cell_content(cell: CellType) -> Any:
    """What a variable of a surrounding function holds; None while it holds nothing."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _dressed(new: FunctionType, function: FunctionType) -> FunctionType:
    new.__kwdefaults__ = function.__kwdefaults__
    if hasattr(function, "__annotate__"):
        new.__annotate__ = function.__annotate__  # type: ignore[attr-defined]
    else:
        new.__annotations__ = function.__annotations__
    new.__qualname__ = function.__qualname__
    new.__module__ = function.__module__
    new.__doc__ = function.__doc__
    new.__dict__.update(function.__dict__)
    if hasattr(function, "__type_params__"):
        new.__type_params__ = function.__type_params__  # type: ignore[attr-defined]
    return new
