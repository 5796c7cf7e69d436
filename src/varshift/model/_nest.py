"""A batch as a nest of tensors: containers and objects are gone through and copied, never written to."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

# What may hang on a batch and holds tensors, but is none of its data.
_CLOSED = (
    str,
    bytes,
    bytearray,
    np.ndarray,
    np.generic,
    type,
    nn.Module,
    Dataset,
    DataLoader,
    torch.Generator,
    types.ModuleType,
    types.FunctionType,
    types.MethodType,
)
_SIMPLE = frozenset(
    {int, float, bool, complex, str, bytes, type(None)}
)  # batches may hold long lists of these
_DEPTH = 8  # an object may hold another one; what lies deeper is not the batch's data


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors inside a nested batch, in order: of containers, data classes and plain objects."""
    yield from _tensors(value, ())


def first_tensor(value: Any) -> Tensor | None:
    """The first tensor inside a nested batch."""
    return next(tensors(value), None)


def map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Applies a function to every tensor of a nested batch and keeps the structure.

    Containers come back as new ones of the same type. An object that holds tensors comes back as a copy, so
    that neither the function nor the receiver of the result can write into the original.
    """
    return Copier(function).copy(value)


def clone(value: Any) -> Any:
    """A copy of a nested batch whose tensors may be overwritten; one tensor at two places stays one."""
    clones: dict[int, Tensor] = {}

    def cloned(tensor: Tensor) -> Tensor:
        if id(tensor) not in clones:
            clones[id(tensor)] = tensor.clone()
        return clones[id(tensor)]

    return map_tensors(value, cloned)


def move(value: Any, device: torch.device | str | None) -> Any:
    """Moves every tensor inside a batch to a device; other things stay as they are.

    An object with a method ``to`` moves itself, since some of its tensors may have to stay where they are.
    It does so in a copy: many such methods write to the object.
    """
    if device is None:
        return value
    return _Mover(torch.device(device)).copy(value)


def attributes(value: Any) -> dict[str, Any]:
    """The attributes of an object that may hold data, slots included; none of what is closed or simple."""
    if isinstance(value, _CLOSED):
        return {}
    found: dict[str, Any] = {}
    for cls in type(value).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name.startswith("__") and not name.endswith("__"):
                name = f"_{cls.__name__.lstrip('_')}{name}"
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                found[name] = getattr(value, name)
    found.update(getattr(value, "__dict__", {}))
    return found


def is_object(value: Any) -> bool:
    """Whether something is an object that holds tensors, and neither a tensor nor a container."""
    if isinstance(value, (Tensor, Mapping, tuple, list)):
        return False
    return any(True for item in attributes(value).values() for _ in tensors(item))


def _tensors(value: Any, path: tuple[int, ...]) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
        return
    if type(value) in _SIMPLE or id(value) in path or len(path) > _DEPTH:
        return
    path = (*path, id(value))
    if isinstance(value, (tuple, list)):
        children: Any = value
    elif isinstance(value, Mapping) and not _keeps_itself(value):
        children = value.values()
    else:
        children = attributes(value).values()
    for child in children:
        yield from _tensors(child, path)


def _keeps_itself(value: Mapping[Any, Any]) -> bool:
    """Whether a mapping is an object around its entries, as `collections.UserDict` is, and no dict."""
    return not isinstance(value, dict) and any(
        True for item in attributes(value).values() for _ in tensors(item)
    )


class Copier:
    """Copies a nest and puts other tensors in; an object that is met twice is copied once."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self._function = function
        self._copies: dict[int, Any] = {}
        self._depth = 0

    def copy(self, value: Any) -> Any:
        """The copy of a batch or of something in it."""
        if isinstance(value, Tensor):
            return self._function(value)
        if type(value) in _SIMPLE or self._depth > _DEPTH:
            return value
        self._depth += 1
        try:
            if isinstance(value, Mapping) and not _keeps_itself(value):
                return self._mapping(value)
            if isinstance(value, tuple) and hasattr(value, "_fields"):
                return type(value)(*(self.copy(item) for item in value))
            if isinstance(value, (tuple, list)):
                return type(value)(self.copy(item) for item in value)
            return self._object(value) if is_object(value) or isinstance(value, Mapping) else value
        finally:
            self._depth -= 1

    def _mapping(self, value: Mapping[Any, Any]) -> Any:
        copied = {key: self.copy(item) for key, item in value.items()}
        return copied if type(value) is dict else _rebuilt(value, copied)

    def _object(self, value: Any) -> Any:
        if id(value) in self._copies:
            return self._copies[id(value)]
        copied = self._copies[id(value)] = _shallow(value)
        for name, item in attributes(copied).items():
            other = self.copy(item)
            if other is not item:
                _assign(copied, name, other)
        return copied


class _Mover(Copier):
    """Moves a nest to a device."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(lambda tensor: tensor.to(device, non_blocking=True))
        self._device = device

    def copy(self, value: Any) -> Any:
        """The copy of a batch or of something in it, on the device; an object that is there stays itself."""
        if isinstance(value, (Tensor, nn.Module)) or not callable(getattr(value, "to", None)):
            return super().copy(value)
        held = list(tensors(value))
        if held and all(_lies_on(tensor, self._device) for tensor in held):
            return value
        copied = map_tensors(value, lambda tensor: tensor)
        moved = copied.to(self._device)
        return copied if moved is None else moved


def _lies_on(tensor: Tensor, device: torch.device) -> bool:
    return tensor.device.type == device.type and device.index in (None, tensor.device.index)


def _rebuilt(original: Mapping[Any, Any], entries: dict[Any, Any]) -> Any:
    """A mapping of the same type with other entries; a dict where the type cannot be made from entries."""
    try:
        rebuilt = type(original)(entries)  # type: ignore[call-arg]
    except TypeError:
        rebuilt = copy.copy(original)
        if not isinstance(rebuilt, dict):
            return entries
        rebuilt.update(entries)
    for name, item in getattr(original, "__dict__", {}).items():
        if not hasattr(rebuilt, name):
            setattr(rebuilt, name, item)
    return rebuilt


def _shallow(value: Any) -> Any:
    copied = copy.copy(value)
    if copied is not value:
        return copied
    # Its own `__copy__` hands out the object itself, which must not be written to.
    copied = object.__new__(type(value))
    for name, item in attributes(value).items():
        _assign(copied, name, item)
    return copied


def _assign(value: Any, name: str, item: Any) -> None:
    """Sets an attribute of a copy past properties and frozen classes."""
    if name in getattr(value, "__dict__", {}):
        value.__dict__[name] = item
    else:
        object.__setattr__(value, name, item)
