"""The recorder: one real forward pass, every operation noted as it is dispatched."""

from __future__ import annotations

import contextlib
import operator
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from types import FrameType
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from varshift.flow._host_draws import PythonDraws
from varshift.flow._identity import Identities, storage_of
from varshift.flow._raw import HostDraw, RawNode, Recording, Role, first_shape
from varshift.flow._slots import Slot, Watch, slots
from varshift.flow._stack import Call, CallStack
from varshift.flow._types import Ref
from varshift.model import FunctionMode, tensors

Tier = Literal["whole", "gradients"]
BeforeWrite = Callable[[Tensor], None]
Listen = Callable[[RawNode, Any], None]
_BOOKKEEPING = frozenset({"profiler", "prim"})
_HOST_READS = frozenset({"resolve_conj", "resolve_neg"})
_STATISTICS = ("running_mean", "running_var")
_SWITCHES = ("training", "train", "use_input_stats")


def record(
    model: nn.Module,
    batch: Any,
    forward: Callable[[nn.Module, Any], Any],
    names: dict[str, str],
    *,
    tier: Tier = "whole",
    before_write: BeforeWrite | None = None,
    listen: Listen | None = None,
    host_draws: bool = False,
) -> Recording:
    """Runs one forward pass and returns the operations it dispatched.

    The pass is a real one: state of `model` is updated in train mode and random numbers are drawn.

    Args:
        model: The module, in the mode that is wanted.
        batch: One batch on the model's device.
        forward: How the model is called with a batch.
        names: Canonical module names (see `canonical_names`).
        tier: ``"whole"`` keeps composite operations (dropout, norms, attention) as one node each and knows
            no gradients; ``"gradients"`` records what autograd leaves of them, for a forward that needs it.
        before_write: Called with every tensor that an operation may write to, before it runs.
        listen: Called with every operation and its result, as soon as it has run.
        host_draws: Whether to note who draws random numbers of Python, which takes time with every call.

    Raises:
        Exception: Whatever the model raises.
    """
    held = slots(model, names)
    watch = Watch(held)
    recorder = _Recorder(held, CallStack(model, names, sys._getframe()), watch, before_write, listen)
    try:
        for tensor in tensors(batch):
            recorder.add_input(tensor)
        heard = PythonDraws(recorder.note_draw) if host_draws else contextlib.nullcontext()
        with _function_mode(model), _tier(tier), recorder, heard:
            outputs = forward(model, batch)
        recorder.add_outputs(tensors(outputs))
    finally:
        recorder.stack.forget()
    result = recorder.result
    result.host_draws = list(recorder.drawn.values())
    now = slots(model, names)
    result.written = tuple(sorted(recorder.written | watch.changed(now)))
    result.replaced = recorder.replaced(held, now)
    return result


@contextlib.contextmanager
def _tier(tier: Tier) -> Iterator[None]:
    """The state of autograd in which operations arrive as a tier wants them."""
    if tier == "gradients":
        with torch.enable_grad():
            yield
    elif _whole_below_autograd():
        with torch.no_grad(), torch._C._AutoDispatchBelowAutograd():
            yield
    else:
        with torch.inference_mode():
            yield


class _Names(TorchDispatchMode):
    """Lists the operations that it sees."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # as below

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@cache
def _whole_below_autograd() -> bool:
    """Whether this version of torch hands composite operations to a mode below autograd (it is private)."""
    guard = getattr(torch._C, "_AutoDispatchBelowAutograd", None)
    if guard is None:
        return False
    names = _Names()
    with torch.no_grad(), guard(), names:
        F.dropout(torch.empty(0), 0.5)  # of no element, so that no random number is drawn
    return "aten.dropout.default" in names.seen


class _PassThrough(FunctionMode):
    """Does nothing, but keeps attention layers from running as one opaque operation in eval mode."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def _function_mode(model: nn.Module) -> contextlib.AbstractContextManager[Any]:
    fast = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)
    if any(isinstance(module, fast) for module in model.modules()):
        return _PassThrough()
    return contextlib.nullcontext()


@dataclass(frozen=True, slots=True)
class _Writes:
    """Which arguments an operator writes to.

    Attributes:
        named: Positions and names that its schema declares.
        statistics: Positions and names of running statistics, of which schemas keep silent.
        switch: Position, name and default of the argument that says whether those are updated.
    """

    named: tuple[tuple[int, str], ...] = ()
    statistics: tuple[tuple[int, str], ...] = ()
    switch: tuple[int, str, Any] | None = None


@cache
def _writes(func: Any) -> _Writes | None:
    """What an operator writes to, None for nothing."""
    schema = getattr(func, "_schema", None)
    if schema is None:
        return None
    places = list(enumerate(schema.arguments))
    named = tuple((i, a.name) for i, a in places if a.alias_info is not None and a.alias_info.is_write)
    statistics: tuple[tuple[int, str], ...] = ()
    if not any(word in schema.name for word in ("backward", "elemt", "no_update", "no_training")):
        statistics = tuple(
            (i, a.name) for i, a in places if a.name in _STATISTICS and (i, a.name) not in named
        )
    switch = next(((i, a.name, a.default_value) for i, a in places if a.name in _SWITCHES), None)
    return _Writes(named, statistics, switch) if named or statistics else None


class _Recorder(TorchDispatchMode):
    """Records operations, their operands by identity, who called them, and what they write to."""

    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # torch would wrap the method below, import its compiler, and take longer for every call

    def __init__(
        self,
        held: dict[str, Slot],
        stack: CallStack,
        watch: Watch,
        before_write: BeforeWrite | None,
        listen: Listen | None,
    ) -> None:
        super().__init__()
        self.result = Recording()
        self.written: set[str] = set()
        self.stack = stack
        self._nodes = self.result.nodes
        self._watch = watch
        self._before_write = before_write
        self._listen = listen
        self._has_inputs = False
        self.drawn: dict[Any, HostDraw] = {}  # by the calls that led there
        self._identities = Identities()
        self._attributes: dict[int, Slot] = {}
        self._owners: dict[int, list[Slot]] = {}  # by storage; the slots keep it alive
        self._input_storages: dict[int, Tensor] = {}
        for slot in held.values():
            storage = storage_of(slot.tensor)
            if storage is not None:
                self._owners.setdefault(storage._cdata, []).append(slot)
            if slot.role == "attribute":
                self._attributes[id(slot.tensor)] = slot
            elif self._identities.find(slot.tensor) is None:
                self._register(slot.tensor, RawNode(slot.role, target=slot.name))

    def _register(self, tensor: Tensor, node: RawNode) -> Ref:
        node.shape, node.dtype = first_shape(tensor)
        reference = self._add(node)
        self._identities.bind(tensor, reference)
        self._identities.own(tensor, reference)
        return reference

    def _add(self, node: RawNode) -> Ref:
        self._nodes.append(node)
        return Ref(len(self._nodes) - 1)

    def add_input(self, tensor: Tensor) -> None:
        """Declares a tensor of the batch."""
        self._has_inputs = True
        storage = storage_of(tensor)
        if storage is not None:
            self._input_storages[storage._cdata] = tensor
        if self._identities.find(tensor) is None:
            self._register(tensor, RawNode("input"))

    def add_outputs(self, tensors: Iterator[Tensor]) -> None:
        """Declares what the pass returned."""
        root = self.stack.locate(None)
        self._nodes.append(RawNode("output", args=([self._reference(tensor, root) for tensor in tensors],)))

    def note_draw(self, frame: FrameType, function: str) -> None:
        """Notes that a frame draws random numbers of Python."""
        call = self.stack.locate(frame)
        self.drawn.setdefault(call.way(), HostDraw(len(self._nodes), function, call))

    def replaced(self, before: dict[str, Slot], now: dict[str, Slot]) -> dict[str, int]:
        """The nodes of the tensors that came to be held in places where others were."""
        nodes: dict[str, int] = {}
        for name, slot in now.items():
            if name not in before or before[name].tensor is not slot.tensor:
                place = self._identities.find(slot.tensor)
                index = place.index if type(place) is Ref else self._identities.owner(slot.tensor)
            else:  # ``.data =`` puts other memory into the same tensor
                index = self._identities.owner(slot.tensor)
            if index is not None and self._nodes[index].role == "call":
                nodes[name] = index
        return nodes

    def _reference(self, tensor: Tensor, call: Call) -> Ref:
        """The node that made a tensor; a tensor from elsewhere is a constant, or an alias of a known one."""
        place = self._identities.find(tensor)
        if type(place) is Ref:
            return place
        shape, dtype = first_shape(tensor)
        if place is not None:  # one result of several: named when it is first read
            source, position = place
            node = RawNode("call", operator.getitem, (source, position), module=call.module)
            node.trace = self._nodes[source.index].trace
        elif id(tensor) in self._attributes:
            slot = self._attributes[id(tensor)]
            return self._register(
                tensor, RawNode("attribute", target=slot.name, value=tensor.detach().clone())
            )
        else:
            owner = self._identities.owner(tensor)
            if owner is None:
                # Without a tensor in the batch, the tensors that forward= brings along are the signal.
                role: Role = "constant" if self._has_inputs else "input"
                return self._register(tensor, RawNode(role, value=tensor.detach()))
            if shape == self._nodes[owner].shape:
                self._identities.bind(tensor, Ref(owner))
                return Ref(owner)
            node = RawNode("call", torch.ops.aten.alias.default, (Ref(owner),), module=call.module)
        node.shape, node.dtype = shape, dtype
        reference = self._add(node)
        self._identities.bind(tensor, reference)
        return reference

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "namespace", "") in _BOOKKEEPING:
            return func(*args, **kwargs)
        if func is torch.ops.higher_order.cond:
            # The branch that runs is recorded like any other code.
            predicate, first, second, operands = (*args, *kwargs.values())
            with self:
                return (first if predicate else second)(*operands)
        call = self.stack.locate(sys._getframe(1))
        recorded = tuple([self._convert(value, call) for value in args])
        recorded_kwargs = {key: self._convert(value, call) for key, value in kwargs.items()} if kwargs else {}
        self._note_writes(func, args, kwargs)
        result = func(*args, **kwargs)
        node = RawNode("call", func, recorded, recorded_kwargs, call.module, call)
        reference = self._add(node)
        if isinstance(result, Tensor):
            node.shape, node.dtype = first_shape(result)
            if self._identities.find(result) is None:
                self._identities.bind(result, reference)
                self._identities.own(result, reference)
        elif isinstance(result, (tuple, list)):
            node.shape, node.dtype = first_shape(result)
            for position, item in enumerate(result):
                if isinstance(item, Tensor) and self._identities.find(item) is None:
                    self._identities.bind(item, (reference, position))
        if self._listen is not None:
            self._listen(node, result)
        return result

    def _convert(self, value: Any, call: Call) -> Any:
        if isinstance(value, Tensor):
            return self._reference(value, call)
        if isinstance(value, (list, tuple)):
            return [self._convert(item, call) for item in value]
        return value

    def _note_writes(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if getattr(func, "__name__", "").split(".")[0] in _HOST_READS:
            # What the host reads through NumPy it may also write to.
            for slot in self._held(args[0]):
                self._watch.keep(slot)
            self._announce(args[0])
        writes = _writes(func)
        if writes is None:
            return
        for position, name in writes.named:
            self._write(args[position] if position < len(args) else kwargs.get(name))
        if writes.statistics:
            position, name, default = writes.switch or (len(args), "", True)
            if args[position] if position < len(args) else kwargs.get(name, default):
                for position, name in writes.statistics:
                    self._write(args[position] if position < len(args) else kwargs.get(name))

    def _held(self, tensor: Tensor) -> list[Slot]:
        storage = storage_of(tensor)
        return [] if storage is None else self._owners.get(storage._cdata, [])

    def _write(self, value: Any) -> None:
        if isinstance(value, Tensor):
            self.written.update(slot.name for slot in self._held(value))
            storage = storage_of(value)
            if storage is not None and storage._cdata in self._input_storages:
                self.result.writes_input = True
            self._announce(value)
        elif isinstance(value, (list, tuple)):
            for item in value:
                self._write(item)

    def _announce(self, tensor: Tensor) -> None:
        if self._before_write is not None:
            self._before_write(tensor)
