"""The fallback: one real forward pass, every operation recorded as it is dispatched."""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from varshift.flow._export import output_tensors
from varshift.flow._raw import Frame, RawNode, Role, first_shape
from varshift.flow._source import is_foreign
from varshift.flow._types import Ref
from varshift.model import canonical_tensor

_SCALAR_READS = ("_local_scalar_dense", "is_nonzero", "item", "equal")


def dispatch_nodes(
    model: nn.Module, batch: Any, forward: Callable[[nn.Module, Any], Any], names: dict[str, str]
) -> list[RawNode]:
    """Runs one forward pass and returns the operations it dispatched.

    The pass is a real one: buffers of `model` are updated in train mode and random numbers are drawn.

    Args:
        model: The module, in the mode that is wanted.
        batch: One batch on the model's device.
        forward: How the model is called with a batch.
        names: Canonical module names (see `canonical_names`).

    Raises:
        Exception: Whatever the model raises.
    """
    recorder = _Recorder(model, names)
    for tensor in output_tensors(batch):
        recorder.add_input(tensor)
    before = register_module_forward_pre_hook(recorder.enter)
    after = register_module_forward_hook(recorder.leave, always_call=True)
    try:
        with torch.no_grad(), recorder:
            outputs = forward(model, batch)
    finally:
        before.remove()
        after.remove()
    results = [recorder.reference(tensor) for tensor in output_tensors(outputs)]
    recorder.nodes.append(RawNode("output", args=(results,)))
    return recorder.nodes


class _Recorder(TorchDispatchMode):
    """Records operations, their operands by tensor identity, and who called them."""

    def __init__(self, model: nn.Module, names: dict[str, str]) -> None:
        super().__init__()
        self.nodes: list[RawNode] = []
        self._has_inputs = False
        self._results: dict[int, Any] = {}
        self._alive: list[Tensor] = []  # an identity is only good while its tensor lives
        self._storages: dict[int, int] = {}
        self._stack: list[tuple[int, str]] = []
        self._paths = {}
        for path, module in model.named_modules():
            self._paths[id(module)] = names.get(path, path)
        for role, items in (("parameter", model.named_parameters()), ("buffer", model.named_buffers())):
            for path, tensor in items:
                node = RawNode(role, target=canonical_tensor(names, path))  # type: ignore[arg-type]
                self._register(tensor, node)

    def _register(self, tensor: Tensor, node: RawNode) -> Ref:
        node.shape, node.dtype = first_shape(tensor)
        self.nodes.append(node)
        reference = Ref(len(self.nodes) - 1)
        self._bind(tensor, reference)
        self._storages.setdefault(_storage(tensor), reference.index)
        return reference

    def _bind(self, tensor: Tensor, reference: Any) -> None:
        self._results[id(tensor)] = reference
        self._alive.append(tensor)

    def add_input(self, tensor: Tensor) -> None:
        """Declares a tensor of the batch."""
        self._has_inputs = True
        if id(tensor) not in self._results:
            self._register(tensor, RawNode("input"))

    def enter(self, module: nn.Module, _args: Any) -> None:
        """Notes that a module was called."""
        path = self._paths.get(id(module))
        if path is not None:
            self._stack.append((id(module), path))

    def leave(self, module: nn.Module, _args: Any, _output: Any) -> None:
        """Notes that a module returned or raised."""
        while self._stack and id(module) in self._paths:
            if self._stack.pop()[0] == id(module):
                break

    def reference(self, tensor: Tensor) -> Ref:
        """The node that made a tensor; a tensor from elsewhere is a constant, or an alias of a known one."""
        known = self._results.get(id(tensor))
        if isinstance(known, Ref):
            return known
        shape, dtype = first_shape(tensor)
        if known is not None:  # one result of several: named when it is first read
            source, position = known
            self.nodes.append(
                RawNode(
                    "call",
                    operator.getitem,
                    (source, position),
                    module=self._module(),
                    frames=self.nodes[source.index].frames,
                    shape=shape,
                    dtype=dtype,
                )
            )
            self._results[id(tensor)] = Ref(len(self.nodes) - 1)
            return self._results[id(tensor)]
        owner = self._storages.get(_storage(tensor))
        if owner is not None:
            node = self.nodes[owner]
            alias = RawNode("call", torch.ops.aten.alias.default, (Ref(owner),), module=self._module())
            if shape == node.shape:
                self._bind(tensor, Ref(owner))
                return Ref(owner)
            alias.shape, alias.dtype = shape, dtype
            self.nodes.append(alias)
            self._bind(tensor, Ref(len(self.nodes) - 1))
            return Ref(len(self.nodes) - 1)
        # Without a tensor in the batch, the tensors that forward= brings along are the signal.
        role: Role = "constant" if self._has_inputs else "input"
        return self._register(tensor, RawNode(role, value=tensor.detach()))

    def _module(self) -> str:
        return self._stack[-1][1] if self._stack else ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        recorded = self._convert(args)
        recorded_kwargs = {key: self._convert(value) for key, value in kwargs.items()}
        result = func(*args, **kwargs)
        shape, dtype = first_shape(result)
        node = RawNode(
            "call", func, tuple(recorded), recorded_kwargs, self._module(), _frames(), shape, dtype
        )
        self.nodes.append(node)
        reference = Ref(len(self.nodes) - 1)
        if isinstance(result, Tensor):
            if id(result) not in self._results:
                self._bind(result, reference)
        elif isinstance(result, (tuple, list)):
            for position, item in enumerate(result):
                if isinstance(item, Tensor) and id(item) not in self._results:
                    self._bind(item, (reference, position))
        return result

    def _convert(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self.reference(value)
        if isinstance(value, (list, tuple)):
            return [self._convert(item) for item in value]
        return value


def _storage(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage()._cdata
    except (RuntimeError, NotImplementedError):  # sparse and other tensors without a storage
        return id(tensor)


def _frames() -> tuple[Frame, ...]:
    frames: list[Frame] = []
    frame = sys._getframe(2)
    while frame is not None:
        code = frame.f_code
        if code is dispatch_nodes.__code__:
            break
        if not is_foreign(code.co_filename):
            frames.append((code.co_filename, frame.f_lineno))
        frame = frame.f_back
    return tuple(reversed(frames))
