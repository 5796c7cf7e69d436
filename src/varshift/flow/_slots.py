"""The tensors that a module tree holds, and which of them changed without any operation saying so."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from varshift.flow._identity import storage_of

SlotRole = Literal["parameter", "buffer", "attribute"]
_MOST_DEPTH = 4
_EMPTY = frozenset({bool, int, float, str, type(None)})  # types that hold no tensor
_HOLDERS = (Tensor, list, tuple, dict)  # those that may hold one
_INTERNAL = frozenset(vars(nn.Module()))  # what every module has: its registers and hooks


@dataclass(frozen=True, slots=True)
class Slot:
    """A place in a module that holds a tensor.

    Attributes:
        name: Module path and name of the parameter, buffer or attribute; items of containers by key.
        role: What it is.
        tensor: The tensor.
    """

    name: str
    role: SlotRole
    tensor: Tensor


def slots(model: nn.Module, names: dict[str, str]) -> dict[str, Slot]:
    """All parameters, buffers and plain tensor attributes of a model by canonical name."""
    found: dict[str, Slot] = {}
    for path, module in model.named_modules():
        prefix = names.get(path, path)
        for key, role, tensor in _held(module):
            name = f"{prefix}.{key}" if prefix else key
            found.setdefault(name, Slot(name, role, tensor))
    return found


def _held(module: nn.Module) -> Iterator[tuple[str, SlotRole, Tensor]]:
    for key, parameter in module._parameters.items():
        if parameter is not None:
            yield key, "parameter", parameter
    for key, buffer in module._buffers.items():
        if buffer is not None:
            yield key, "buffer", buffer
    for key, value in vars(module).items():
        if type(value) not in _EMPTY and key not in _INTERNAL and isinstance(value, _HOLDERS):
            for name, tensor in _tensors(key, value, _MOST_DEPTH):
                yield name, "attribute", tensor


def _tensors(name: str, value: Any, depth: int) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif depth and isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            if type(item) not in _EMPTY:
                yield from _tensors(f"{name}.{index}", item, depth - 1)
    elif depth and isinstance(value, dict):
        for key, item in value.items():
            if type(item) not in _EMPTY:
                yield from _tensors(f"{name}.{key}", item, depth - 1)


class Watch:
    """What the slots of a model held at one moment, to be compared with what they hold later.

    A new tensor in a slot, other memory in the same tensor (``.data =``) and values written through NumPy are
    no operations: they show here only. The values of parameters are compared where the host read them.
    """

    def __init__(self, found: dict[str, Slot]) -> None:
        self._before = {name: (slot.tensor, _memory(slot.tensor)) for name, slot in found.items()}
        self._values: dict[str, Tensor] = {}
        for slot in found.values():
            if slot.role != "parameter":
                self.keep(slot)

    def keep(self, slot: Slot) -> None:
        """Keeps the values of a slot for the comparison."""
        if slot.name not in self._values and _readable(slot.tensor):
            self._values[slot.name] = _bits(slot.tensor).clone()

    def changed(self, now: dict[str, Slot]) -> set[str]:
        """Names of the slots that hold something else by now; new ones and lost ones included."""
        names = self._before.keys() ^ now.keys()
        for name in self._before.keys() & now.keys():
            current = now[name].tensor
            if self._replaced(name, current) or self._overwritten(name, current):
                names.add(name)
        return names

    def _replaced(self, name: str, current: Tensor) -> bool:
        tensor, memory = self._before[name]
        return current is not tensor or _memory(current) != memory

    def _overwritten(self, name: str, current: Tensor) -> bool:
        return name in self._values and not torch.equal(self._values[name], _bits(current))


def _memory(tensor: Tensor) -> Any:
    storage = storage_of(tensor)
    return None if storage is None else (storage._cdata, tuple(tensor.shape), tensor.storage_offset())


def _readable(tensor: Tensor) -> bool:
    """Whether NumPy could write to a tensor, and its values can be compared."""
    plain = type(tensor) in (Tensor, nn.Parameter, nn.Buffer) and tensor.layout is torch.strided
    return plain and tensor.device.type == "cpu" and not (tensor.is_quantized or tensor.is_nested)


def _bits(tensor: Tensor) -> Tensor:
    """The values of a tensor as bytes: equal bits are equal, NaN included."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)
