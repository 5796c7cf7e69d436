"""What a module tree is at one moment: bindings, contents of containers, values; and the way back to it."""

from __future__ import annotations

import collections
import dis
import types
from collections.abc import Callable, Iterable
from operator import is_
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from varshift.model._copy import is_shared, slot_names
from varshift.model._random import keep_generator
from varshift.model._tensors import TensorCopier, same_bits, still_shared, view_of

_Restore = Callable[[], None]
_PLAIN = (str, bytes, int, float, complex, bool, type(None), type, types.ModuleType, types.CodeType)
_COMMON = frozenset(_PLAIN)
_CONTAINERS = (list, dict, set, collections.deque)
# How far objects that hold one another are followed: the model's own, and those that a hook refers to.
_FAR, _NEAR = 8, 1
_LONGEST = 100_000


class Snapshot:
    """Everything that a forward pass may write in a model, as it is now.

    Two kinds of things are told apart: what the model holds, and what hooks of the user's refer to.

    Args:
        model: The model.
        tensors: Copies the memory of tensors.
        left_alone: Objects that are not looked into.
        users_only: Whether what the model holds is looked through for hooks only, and not kept.
    """

    def __init__(
        self,
        model: nn.Module,
        tensors: TensorCopier,
        left_alone: Iterable[Any] = (),
        *,
        users_only: bool = False,
    ) -> None:
        self._model = _Walk(None if users_only else tensors, left_alone)
        self._model.keep_all([(model, _FAR)])
        self._users = _Walk(tensors, self._model.seen.values())
        for function in self._model.functions:
            self._users.keep_all((value, _NEAR) for value in self._users.keep_variables(function))

    def restore_model(self) -> None:
        """Puts back what the model holds, each item on its own; the first error is raised at the end."""
        restore_each(self._model.restores)

    def restore_users(self) -> None:
        """Puts back what hooks of the user's refer to, each item on its own; likewise."""
        restore_each(self._users.restores)

    def restore(self) -> None:
        """Puts everything back, each item on its own; the first error is raised at the end."""
        restore_each([*self._model.restores, *self._users.restores])

    def wrote(self, tensor: Tensor) -> bool:
        """Whether a tensor has other values than at the time of the snapshot, or did not exist then."""
        state = self._model.tensors.get(id(tensor))
        return state is None or state.changed()


def restore_each(restores: Iterable[_Restore]) -> None:
    errors: list[Exception] = []
    for restore in restores:
        try:
            restore()
        except Exception as error:
            errors.append(error)
    if errors:
        raise errors[0]


class _Walk:
    """Notes what objects are, and what they hold, and how each is put back.

    Args:
        copier: Copies the memory of tensors; without one, only the functions among the objects are noted.
        left_alone: Objects that are not looked into.
    """

    def __init__(self, copier: TensorCopier | None, left_alone: Iterable[Any]) -> None:
        self._copier = copier
        self.seen = {id(item): item for item in left_alone}
        self._containers = _Containers()
        self.restores: list[_Restore] = [self._containers.restore]
        self.tensors: dict[int, _TensorState] = {}
        self.functions: list[Any] = []

    def keep_all(self, roots: Iterable[tuple[Any, int]]) -> None:
        """Follows what the roots hold, as many objects far as each says."""
        pending = list(roots)
        while pending:
            item, distance = pending.pop()
            if isinstance(item, _PLAIN) or id(item) in self.seen or distance < 0:
                continue
            self.seen[id(item)] = item
            pending.extend(self._keep(item, distance))

    def _keep(self, item: Any, distance: int) -> list[tuple[Any, int]]:
        """Notes what one object is, and returns what it holds."""
        if isinstance(item, Tensor):
            if self._copier is not None:
                state = self.tensors[id(item)] = _TensorState(item, self._copier)
                self.restores.append(state.restore)
                self._containers.keep(vars(item))
            held = [*vars(item).values(), item.grad if item.is_leaf else None]
        elif isinstance(item, np.ndarray):
            if self._copier is not None:
                self.restores.append(_array(item))
            held = []
        elif isinstance(item, _CONTAINERS):
            if len(item) > _LONGEST:
                return []
            if self._copier is not None:
                self._containers.keep(item)
            held = list(item.values() if isinstance(item, dict) else item)
            held += self._attributes(item) if hasattr(item, "__dict__") else []
        elif isinstance(item, (tuple, frozenset)):
            held = list(item)
        elif (restore := keep_generator(item)) is not None:
            self.restores.append(restore)
            held = []
        elif isinstance(item, types.MethodType) and isinstance(item.__self__, nn.Module):
            held = [item.__self__]
        elif isinstance(item, (types.FunctionType, types.MethodType)):
            self.functions.append(item)
            held = []
        elif is_shared(item):
            held = []
        else:
            distance = distance if isinstance(item, nn.Module) else distance - 1
            held = self._attributes(item)
        held = [value for value in held if type(value) not in _COMMON]
        if self._copier is None:  # most containers of a module are registers of hooks without any
            held = [value for value in held if not isinstance(value, dict) or value]
        return [(value, distance) for value in held]

    def _attributes(self, item: Any) -> list[Any]:
        held: list[Any] = []
        attributes = getattr(item, "__dict__", None)
        if isinstance(attributes, dict):
            if self._copier is not None:
                self._containers.keep(attributes)
            held.extend(attributes.values())
        for name in slot_names(type(item)):
            value = getattr(item, name, None)
            if value is not None:
                if self._copier is not None:
                    self.restores.append(_slot(item, name, value))
                held.append(value)
        return held

    def keep_variables(self, function: Any) -> list[Any]:
        """Notes the variables around a function; returns them, and the containers among its global ones."""
        if isinstance(function, types.MethodType):
            return [function.__self__, *self.keep_variables(function.__func__)]
        if not isinstance(function, types.FunctionType):
            return []
        held: list[Any] = list(vars(function).values())
        for cell in function.__closure__ or ():
            try:
                held.append(cell.cell_contents)
            except ValueError:  # not set yet
                continue
            self.restores.append(_slot(cell, "cell_contents", cell.cell_contents))
        scope = function.__globals__
        held += [
            scope[name] for name in function.__code__.co_names if isinstance(scope.get(name), _CONTAINERS)
        ]
        for step in dis.get_instructions(function.__code__):
            if step.opname == "STORE_GLOBAL" and step.argval in scope:
                self.restores.append(_entry(scope, step.argval, scope[step.argval]))
        return held


class _TensorState:
    """One tensor: its memory, its layout over it, and its flags."""

    def __init__(self, tensor: Tensor, copier: TensorCopier) -> None:
        self._tensor, self._alias = tensor, tensor.detach()
        self._memory = copier.memory(tensor)
        self._clone = tensor.detach().clone() if self._memory is None and not tensor.is_meta else None
        self._requires_grad = tensor.requires_grad
        self._grad = tensor.grad if tensor.is_leaf else None

    def changed(self) -> bool:
        """Whether the tensor has other values."""
        if self._moved():
            return True
        if self._memory is None:
            return self._clone is not None and not torch.equal(self._tensor, self._clone)
        flat, copied = self._memory
        return not still_shared(flat) and not same_bits(self._tensor, view_of(copied, self._alias))

    def restore(self) -> None:
        """Gives the tensor its memory, layout, values and flags back."""
        tensor = self._tensor
        if self._moved():
            tensor.data = self._alias
        if self._memory is not None:
            flat, copied = self._memory
            storage = flat.untyped_storage()
            if storage.nbytes() < flat.numel():
                storage.resize_(flat.numel())
            # A batch norm's own kernel writes its statistics without counting it as a write: look.
            if not still_shared(flat) and not torch.equal(flat, copied):
                flat.copy_(copied)
        elif self._clone is not None and not torch.equal(tensor, self._clone):
            write(tensor, self._clone)
        if tensor.is_leaf:
            if tensor.requires_grad != self._requires_grad:
                tensor.requires_grad_(self._requires_grad)
            if tensor.grad is not self._grad:
                tensor.grad = self._grad

    def _moved(self) -> bool:
        tensor, alias = self._tensor, self._alias
        if tensor.shape != alias.shape or tensor.dtype != alias.dtype or tensor.device != alias.device:
            return True
        if self._memory is None:
            return False
        same = tensor.untyped_storage()._cdata == alias.untyped_storage()._cdata
        return (
            not same or tensor.stride() != alias.stride() or tensor.storage_offset() != alias.storage_offset()
        )


def write(tensor: Tensor, value: Tensor) -> None:
    """Overwrites a buffer in place, wherever it was made."""
    # A tensor made in inference mode can be written to in inference mode only.
    context = torch.inference_mode() if tensor.is_inference() else torch.no_grad()
    with context:
        tensor.copy_(value)


class _Containers:
    """Containers and what they hold, in two lists: a model has thousands, which garbage collectors count."""

    def __init__(self) -> None:
        self._containers: list[Any] = []
        self._contents: list[Any] = []

    def keep(self, container: Any) -> None:
        """Notes what a container holds."""
        kinds = (kind for kind in (dict, set) if isinstance(container, kind))
        self._containers.append(container)
        self._contents.append(next(kinds, list)(container))

    def restore(self) -> None:
        """Puts back what the containers held, each on its own; the first error is raised at the end."""
        errors: list[Exception] = []
        for container, contents in zip(self._containers, self._contents, strict=True):
            try:
                _refill(container, contents)
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]


def _refill(container: Any, contents: Any) -> None:
    if isinstance(container, set):
        if container != contents:
            container.clear()
            container.update(contents)
        return
    same = len(container) == len(contents) and all(map(is_, container, contents))
    if not isinstance(container, dict):
        if not same:
            container.clear()
            container.extend(contents)
        return
    if same and all(map(is_, container.values(), contents.values())):
        return
    for key in [key for key in container if key not in contents]:
        del container[key]
    for key, value in contents.items():
        if key not in container or container[key] is not value:
            container[key] = value
    if not all(map(is_, container, contents)):
        container.clear()
        container.update(contents)


def _array(array: np.ndarray) -> _Restore:
    saved = array.copy()

    def restore() -> None:
        if array.flags.writeable and array.tobytes() != saved.tobytes():
            array[...] = saved

    return restore


def _slot(item: Any, name: str, value: Any) -> _Restore:
    def restore() -> None:
        if getattr(item, name, None) is not value:
            setattr(item, name, value)

    return restore


def _entry(scope: dict[str, Any], name: str, value: Any) -> _Restore:
    def restore() -> None:
        if scope.get(name) is not value:
            scope[name] = value

    return restore
