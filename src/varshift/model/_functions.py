"""Functions that refer to modules: a copy of a model needs its own, which act on the copy."""

from __future__ import annotations

import functools
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

_DEEPEST, _MOST = 6, 2000


def refers_to(value: Any, tree: dict[int, Any]) -> bool:
    """Whether a value is one of the objects of `tree`, or holds one within reach."""
    seen: set[int] = set()
    level = [value]
    for _ in range(_DEEPEST):
        following: list[Any] = []
        for item in level:
            if id(item) in tree:
                return True
            if id(item) in seen or len(seen) > _MOST:
                continue
            seen.add(id(item))
            following.extend(_inside(item))
        level = following
    return False


def rebound(
    function: types.FunctionType,
    tree: dict[int, Any],
    copy: Callable[[Any], Any],
    cells: dict[int, types.CellType],
) -> types.FunctionType:
    """The same function, with copies of those of its variables that refer to `tree`; itself if none does.

    Args:
        function: A hook, or a function that a module holds.
        tree: The modules and tensors of the model, by identity.
        copy: Copies a value.
        cells: The copied variables so far, by identity: functions may share them.
    """
    closure, changed = [], False
    for cell in function.__closure__ or ():
        if id(cell) not in cells and refers_to(_contents(cell), tree):
            cells[id(cell)] = types.CellType()  # first, for a function that refers to itself
            cells[id(cell)].cell_contents = copy(_contents(cell))
        changed = changed or id(cell) in cells
        closure.append(cells.get(id(cell), cell))
    variables = {
        name: copy(function.__globals__[name])
        for name in function.__code__.co_names
        if isinstance(function.__globals__.get(name), (nn.Module, Tensor))
        and id(function.__globals__[name]) in tree
    }
    defaults, keyword_defaults = function.__defaults__, function.__kwdefaults__
    if refers_to((defaults, keyword_defaults), tree):
        defaults, keyword_defaults, changed = copy(defaults), copy(keyword_defaults), True
    if not changed and not variables:
        return function
    scope = {**function.__globals__, **variables} if variables else function.__globals__
    twin = types.FunctionType(function.__code__, scope, function.__name__, defaults, tuple(closure))
    twin.__kwdefaults__ = keyword_defaults
    twin.__dict__.update({name: copy(value) for name, value in vars(function).items()})
    twin.__qualname__, twin.__module__ = function.__qualname__, function.__module__
    return twin


def _contents(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not set yet
        return None


def _inside(item: Any) -> Iterator[Any]:
    if isinstance(item, (str, bytes, int, float, Tensor, nn.Module, type, types.ModuleType)):
        return
    if isinstance(item, dict):
        yield from item.values()
    elif isinstance(item, (list, tuple, set, frozenset)):
        yield from item
    elif isinstance(item, types.MethodType):
        yield item.__self__
        yield item.__func__
    elif isinstance(item, types.FunctionType):
        for cell in item.__closure__ or ():
            yield _contents(cell)
        yield item.__defaults__
        yield from (item.__globals__.get(name) for name in item.__code__.co_names)
    elif isinstance(item, functools.partial):
        yield from (item.func, item.args, item.keywords)
    elif isinstance(item, weakref.ref):
        yield item()
    elif hasattr(item, "__dict__"):
        yield from vars(item).values()
