"""Copies of live models and of batches, tolerant of what cannot be copied."""

from __future__ import annotations

import collections
import copy
import copyreg
import functools
import threading
import types
import weakref
from collections.abc import Callable
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset, Sampler

from varshift.model._functions import rebound, refers_to
from varshift.model._tensors import TensorCopier
from varshift.model._unwrap import compiled_from

_ATOMIC = frozenset(
    [
        *(type(None), bool, int, float, complex, str, bytes, type, range, slice, type(...)),
        *(type(NotImplemented), types.ModuleType, types.BuiltinFunctionType, types.CodeType, property),
        *(torch.Size, torch.dtype, torch.device, torch.layout, torch.memory_format),
        *(types.MethodDescriptorType, types.WrapperDescriptorType),
    ]
)
# What a forward pass may use but does not change, and what would be dear or senseless to double.
_SHARED = (Optimizer, LRScheduler, Dataset, DataLoader, Sampler, threading.Thread, torch.Stream, torch.Event)
_LOCK, _RLOCK = type(threading.Lock()), type(threading.RLock())


class Uncopyable(Exception):  # noqa: N818 - a reason, handled where the copy is asked for
    """A model of which no copy can be run."""


class ModelCopier:
    """Copies objects with all that they hold, each once, so that what was shared stays shared.

    Modules are copied by their attributes, whatever they say about copying themselves. Objects that cannot
    be copied (open files, running generators) are shared with the original, and listed in `shared`; what a
    module itself leaves out of its copies is shared, too, and listed in `left_alone`.

    Args:
        tensors: How tensors are copied.
    """

    def __init__(self, tensors: TensorCopier) -> None:
        self._tensors = tensors
        self._memo: dict[int, Any] = {}
        self._alive: list[Any] = []  # an identity is only good while its object lives
        self._tree: dict[int, Any] = {}
        self._unfilled: set[int] = set()
        self._cells: dict[int, types.CellType] = {}
        self._compiled: dict[type, list[tuple[str, Any]]] = {}  # methods, by class
        self.shared: list[Any] = []
        self.left_alone: list[Any] = []

    def copy_model(self, model: nn.Module) -> nn.Module:
        """Copies a module with its tree.

        Raises:
            Uncopyable: If a module of it cannot be copied.
        """
        for module in model.modules():
            self._blank(module)  # all of them first: a copy made by others finds them under their identity
        for tensor in (*model.parameters(), *model.buffers()):
            self._tree[id(tensor)] = tensor
        return self.copy(model)

    def copy(self, value: Any) -> Any:
        """The copy of a value; the same one whenever it is asked for."""
        cls = type(value)
        if cls in _ATOMIC:
            return value
        key = id(value)
        if key in self._memo and key not in self._unfilled:
            return self._memo[key]
        self._alive.append(value)
        if (handler := _HANDLERS.get(cls)) is not None:
            result = handler(self, value)
        elif isinstance(value, nn.Module):
            result = self._module(value)
        elif isinstance(value, Tensor):
            result = self._tensors.copy(value, self._memo, self.copy)
        elif isinstance(value, (*_SHARED, type)):
            result = value
        else:
            result = self._object(value, cls)
        self._memo[key] = result
        return result

    # -- modules ------------------------------------------------------------------------------------------

    def _blank(self, module: nn.Module) -> nn.Module:
        key = id(module)
        if key not in self._memo:
            if isinstance(module, torch.jit.ScriptModule):
                try:
                    self._memo[key] = copy.deepcopy(module)
                except Exception as error:
                    raise Uncopyable(f"{type(module).__name__}: {error}") from error
            else:
                try:
                    self._memo[key] = object.__new__(type(module))
                except TypeError as error:  # a class with memory of its own
                    raise Uncopyable(f"{type(module).__name__}: {error}") from error
                self._unfilled.add(key)
            self._tree[key] = module
            # A handle of a hook knows the dictionary that the hook is in, not the module.
            for name, value in vars(module).items():
                if name.endswith("_hooks") and isinstance(value, dict):
                    self._tree[id(value)] = value
            self._alive.append(module)
        return self._memo[key]

    def _module(self, module: nn.Module) -> nn.Module:
        twin = self._blank(module)
        if id(module) not in self._unfilled:
            return twin
        self._unfilled.discard(id(module))
        dropped = _not_to_be_copied(module)
        attributes = twin.__dict__
        for name, value in module.__dict__.items():
            if type(value) in _ATOMIC:
                attributes[name] = value
            elif name in dropped and not isinstance(value, (Tensor, nn.Module, list, dict, set)):
                self.left_alone.append(value)
                attributes[name] = value
            else:
                attributes[name] = self.copy(value)
        for name in slot_names(type(module)):
            if hasattr(module, name):
                object.__setattr__(twin, name, self.copy(getattr(module, name)))
        self._run_eagerly(module, twin)
        return twin

    def _run_eagerly(self, module: nn.Module, twin: nn.Module) -> None:
        """Undoes `torch.compile` in a copy: compiled code is closed to whoever listens in."""
        attributes = twin.__dict__
        if isinstance(attributes.get("_modules", {}).get("_orig_mod"), nn.Module):
            inner = attributes["_modules"]["_orig_mod"]
            attributes["forward"] = types.MethodType(type(inner).__call__, inner)
            attributes.pop("_forward", None)
        if attributes.get("_compiled_call_impl") is not None:
            attributes["_compiled_call_impl"] = None
        cls = type(module)
        if cls not in self._compiled:
            self._compiled[cls] = _compiled_methods(cls)
        for name, inner in self._compiled[cls]:
            if name not in attributes:
                attributes[name] = types.MethodType(inner, twin)

    # -- functions ----------------------------------------------------------------------------------------

    def _function(self, function: types.FunctionType) -> Any:
        inner = compiled_from(function)
        if inner is not None:
            return self.copy(inner)
        return rebound(function, self._tree, self.copy, self._cells)

    def _method(self, method: types.MethodType) -> Any:
        owner, function = method.__self__, method.__func__
        if not refers_to(owner, self._tree):
            return method  # of an object of the user's, which other code reads
        copied = self.copy(function) if isinstance(function, types.FunctionType) else function
        return types.MethodType(copied, self.copy(owner))

    def _partial(self, partial: functools.partial[Any]) -> Any:
        twin = functools.partial(
            self.copy(partial.func), *self.copy(partial.args), **self.copy(partial.keywords)
        )
        twin.__dict__.update(self.copy(vars(partial)))
        return twin

    def _reference(self, reference: weakref.ref[Any]) -> Any:
        target = reference()
        return weakref.ref(self.copy(target)) if id(target) in self._tree else reference

    # -- containers ---------------------------------------------------------------------------------------

    def _list(self, value: list[Any]) -> list[Any]:
        twin = self._memo[id(value)] = []
        twin.extend(self.copy(item) for item in value)
        return twin

    def _dict(self, value: dict[Any, Any]) -> dict[Any, Any]:
        twin = self._memo[id(value)] = type(value)()
        for key, item in value.items():
            twin[key if type(key) is str else self.copy(key)] = self.copy(item)
        return twin

    def _defaults(self, value: collections.defaultdict[Any, Any]) -> Any:
        twin = self._memo[id(value)] = collections.defaultdict(self.copy(value.default_factory))
        for key, item in value.items():
            twin[self.copy(key)] = self.copy(item)
        return twin

    def _tuple(self, value: tuple[Any, ...]) -> tuple[Any, ...]:
        items = tuple(self.copy(item) for item in value)
        return value if all(map(is_, items, value)) else items

    def _set(self, value: set[Any]) -> set[Any]:
        twin = self._memo[id(value)] = set()
        twin.update(self.copy(item) for item in value)
        return twin

    def _deque(self, value: collections.deque[Any]) -> Any:
        twin = self._memo[id(value)] = collections.deque(maxlen=value.maxlen)
        twin.extend(self.copy(item) for item in value)
        return twin

    # -- all else -----------------------------------------------------------------------------------------

    def _generator(self, value: torch.Generator) -> torch.Generator:
        return value.clone_state()

    def _object(self, value: Any, cls: type) -> Any:
        try:
            own = getattr(cls, "__deepcopy__", None)
            if own is not None:
                return own(value, self._memo)
            reduce = copyreg.dispatch_table.get(cls)
            reduced: Any = reduce(value) if reduce is not None else value.__reduce_ex__(4)
            return value if isinstance(reduced, str) else self._rebuilt(value, *reduced)
        except Uncopyable:
            raise
        except Exception:  # files, sockets, running generators, objects of C extensions
            self._memo.pop(id(value), None)
            self.shared.append(value)
            return value

    def _rebuilt(
        self,
        value: Any,
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        state: Any = None,
        items: Any = None,
        entries: Any = None,
        setter: Any = None,
    ) -> Any:
        """An object put together again from what it says for pickling."""
        twin = self._memo[id(value)] = function(*(self.copy(item) for item in arguments))
        if state is not None:
            state = self.copy(state)
            if setter is not None:
                setter(twin, state)
            elif hasattr(twin, "__setstate__"):
                twin.__setstate__(state)
            else:
                plain, slots = state if isinstance(state, tuple) and len(state) == 2 else (state, None)
                twin.__dict__.update(plain or {})
                for name, item in (slots or {}).items():
                    setattr(twin, name, item)
        for item in items or ():
            twin.append(self.copy(item))
        for key, item in entries or ():
            twin[self.copy(key)] = self.copy(item)
        return twin


_HANDLERS: dict[type, Callable[[ModelCopier, Any], Any]] = {
    types.FunctionType: ModelCopier._function,
    types.MethodType: ModelCopier._method,
    functools.partial: ModelCopier._partial,
    weakref.ref: ModelCopier._reference,
    list: ModelCopier._list,
    dict: ModelCopier._dict,
    collections.OrderedDict: ModelCopier._dict,
    collections.defaultdict: ModelCopier._defaults,
    tuple: ModelCopier._tuple,
    set: ModelCopier._set,
    collections.deque: ModelCopier._deque,
    torch.Generator: ModelCopier._generator,
    _LOCK: lambda copier, lock: threading.Lock(),
    _RLOCK: lambda copier, lock: threading.RLock(),
}


def is_shared(value: Any) -> bool:
    """Whether copies of a model share an object with it although it could be copied."""
    return isinstance(value, _SHARED)


@functools.lru_cache(maxsize=4096)
def slot_names(cls: type) -> tuple[str, ...]:
    """Names of the attributes that objects of a class keep outside `__dict__`."""
    names: list[str] = []
    for base in cls.__mro__:
        own = base.__dict__.get("__slots__", ())
        names += (own,) if isinstance(own, str) else own
    return tuple(name for name in names if name not in ("__dict__", "__weakref__"))


def _not_to_be_copied(module: nn.Module) -> frozenset[str]:
    """Attributes that a module itself leaves out of its copies, as a trainer that it belongs to."""
    own = getattr(type(module), "__getstate__", None)
    if own in (None, getattr(object, "__getstate__", None), getattr(nn.Module, "__getstate__", None)):
        return frozenset()
    try:
        state = own(module)
    except Exception:  # it refuses to be copied, which does not matter here
        return frozenset()
    if not isinstance(state, dict):
        return frozenset()
    return frozenset(
        name for name, value in vars(module).items() if value is not None and state.get(name) is None
    )


def _compiled_methods(cls: type) -> list[tuple[str, Any]]:
    """The methods of a class of modules that are compiled, as they were written."""
    methods = []
    for base in cls.__mro__:
        if base is nn.Module:
            break
        for name, value in vars(base).items():
            inner = compiled_from(value)
            if inner is not None and getattr(cls, name) is value:
                methods.append((name, inner))
    return methods
