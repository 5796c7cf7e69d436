"""The one place that knows `torch.export`: from a module to raw nodes."""

from __future__ import annotations

import contextlib
import operator
import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import TracerBase

from varshift.flow._raw import RawNode, Role, first_shape
from varshift.flow._source import is_foreign
from varshift.flow._types import Ref
from varshift.model import canonical_tensor, map_tensors

_MODEL = "model"
_REPEATED_CALL = re.compile(r"@\d+$")


class _Wrapper(nn.Module):
    """Gives any forward function and any structure of inputs and outputs the flat form that export takes."""

    def __init__(self, model: nn.Module, forward: Callable[[nn.Module, Any], Any], batch: Any) -> None:
        super().__init__()
        self.model = model
        self._call = forward
        # A tuple hides the batch from export, which would otherwise look for tensors among the attributes.
        self._batch = (map_tensors(batch, lambda tensor: torch.empty(0, device="meta")),)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        remaining = iter(tensors)
        batch = map_tensors(self._batch[0], lambda _: next(remaining))
        return tuple(output_tensors(self._call(self.model, batch)))


def output_tensors(outputs: Any, depth: int = 0) -> Iterator[Tensor]:
    """Every tensor inside outputs or a batch: tensors, containers, dataclasses and plain objects."""
    if isinstance(outputs, Tensor):
        yield outputs
        return
    if depth > 8:
        return
    if isinstance(outputs, Mapping):
        children: list[Any] = list(outputs.values())
    elif isinstance(outputs, (tuple, list)):
        children = list(outputs)
    elif is_dataclass(outputs) and not isinstance(outputs, type):
        children = [getattr(outputs, field.name) for field in fields(outputs)]
    elif (
        hasattr(outputs, "__dict__") and not isinstance(outputs, (type, nn.Module)) and not callable(outputs)
    ):
        children = list(vars(outputs).values())
    else:
        return
    for child in children:
        yield from output_tensors(child, depth + 1)


def export_nodes(
    model: nn.Module, batch: Any, forward: Callable[[nn.Module, Any], Any], names: dict[str, str]
) -> list[RawNode]:
    """Exports a module as it stands (its training flags included) and returns its operations.

    Args:
        model: The module; export traces it with fake tensors and leaves its state alone.
        batch: One batch.
        forward: How the model is called with a batch.
        names: Canonical module names (see `canonical_names`).

    Raises:
        Exception: Whatever export or the model raises.
    """
    tensors: list[Tensor] = []
    map_tensors(batch, lambda tensor: tensors.append(tensor) or tensor)
    with _whole_traces(), _unchecked_distributions():
        program = torch.export.export(_Wrapper(model, forward, batch), tuple(tensors), strict=False)
    signature = program.graph_signature
    roles: dict[str, tuple[Role, str | None, Tensor | None]] = {}
    for name, path in signature.inputs_to_parameters.items():
        roles[name] = ("parameter", canonical_tensor(names, _strip(path)), None)
    for name, path in signature.inputs_to_buffers.items():
        roles[name] = ("buffer", canonical_tensor(names, _strip(path)), None)
    for name, path in signature.inputs_to_lifted_tensor_constants.items():
        value = program.constants.get(path)
        # Without a tensor among the inputs, the tensors that forward= brought along are the signal.
        role: Role = "constant" if tensors else "input"
        roles[name] = (role, None, value if isinstance(value, Tensor) else None)
    reader = _Reader(names, roles)
    reader.read(program.graph_module)
    return reader.nodes


@contextlib.contextmanager
def _whole_traces() -> Iterator[None]:
    """Lets export record the lines of functions that a forward calls; it only keeps those named forward."""
    name = "_filter_traceback_frames"
    tracer = TracerBase
    default = getattr(tracer, name, None)
    if default is None:  # another version of torch: the lines are those of the forward then
        yield
        return

    def keep(self: Any, summary: traceback.StackSummary) -> traceback.StackSummary:
        start = next(
            (i for i, f in enumerate(summary) if f.filename == __file__ and f.name == "forward"), None
        )
        if start is None:
            return default(self, summary)
        return traceback.StackSummary.from_list(
            [f for f in summary[start + 1 :] if not is_foreign(f.filename)]
        )

    setattr(tracer, name, keep)
    try:
        yield
    finally:
        setattr(tracer, name, default)


@contextlib.contextmanager
def _unchecked_distributions() -> Iterator[None]:
    """Export cannot follow the checks of distributions' arguments, which read values."""
    distribution = torch.distributions.Distribution
    default = distribution._validate_args
    distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        distribution.set_default_validate_args(default)


def _strip(path: str) -> str:
    return path.removeprefix(_MODEL + ".")


class _Reader:
    """Flattens an exported graph; regions with their own gradient or autocast mode are inlined."""

    def __init__(
        self, names: dict[str, str], roles: dict[str, tuple[Role, str | None, Tensor | None]]
    ) -> None:
        self.names = names
        self.roles = roles
        self.nodes: list[RawNode] = []

    def read(self, graph_module: fx.GraphModule) -> None:
        results = self._region(graph_module, None, "", "")
        shape = None
        self.nodes.append(RawNode("output", args=(results,), shape=shape))

    def _region(
        self, graph_module: fx.GraphModule, operands: list[Any] | None, module: str, trace: str
    ) -> Any:
        values: dict[fx.Node, Any] = {}
        arguments = iter(operands or ())

        def convert(value: Any) -> Any:
            if isinstance(value, fx.Node):
                return values.get(value)
            if isinstance(value, (list, tuple)):
                return [convert(item) for item in value]
            if isinstance(value, dict):
                return {key: convert(item) for key, item in value.items()}
            return value

        for node in graph_module.graph.nodes:
            if node.op == "placeholder":
                values[node] = self._placeholder(node) if operands is None else next(arguments, None)
            elif node.op == "get_attr":
                values[node] = self._attribute(graph_module, node)
            elif node.op == "call_function":
                args = tuple(convert(argument) for argument in node.args)
                kwargs = {key: convert(item) for key, item in node.kwargs.items()}
                values[node] = self._call(node, args, kwargs, module, trace)
            elif node.op == "output":
                return convert(node.args[0])
        return None

    def _add(self, node: RawNode) -> Ref:
        self.nodes.append(node)
        return Ref(len(self.nodes) - 1)

    def _placeholder(self, node: fx.Node) -> Ref | None:
        if not isinstance(node.meta.get("val"), Tensor):
            return None  # an object that the model holds, such as a generator of random numbers
        shape, dtype = first_shape(node.meta.get("val"))
        role, target, value = self.roles.get(node.name, ("input", None, None))
        return self._add(RawNode(role, shape=shape, dtype=dtype, target=target, value=value))

    def _attribute(self, graph_module: fx.GraphModule, node: fx.Node) -> Any:
        value: Any = operator.attrgetter(str(node.target))(graph_module)
        if isinstance(value, fx.GraphModule):
            return value
        if isinstance(value, Tensor):
            return self._add(RawNode("constant", shape=tuple(value.shape), dtype=value.dtype, value=value))
        return None

    def _call(
        self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any], module: str, trace: str
    ) -> Any:
        stack = node.meta.get("nn_module_stack")
        module = self._path(stack) if stack else module
        trace = node.meta.get("stack_trace") or trace
        regions = [value for value in (*args, *kwargs.values()) if isinstance(value, fx.GraphModule)]
        if regions:
            return self._inline(regions, args, kwargs, module, trace)
        if node.target is operator.getitem and isinstance(args[0], list):
            return args[0][args[1]] if args[1] < len(args[0]) else None
        shape, dtype = first_shape(node.meta.get("val"))
        return self._add(RawNode("call", node.target, args, kwargs, module, trace, shape=shape, dtype=dtype))

    def _inline(
        self,
        regions: list[fx.GraphModule],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        module: str,
        trace: str,
    ) -> Any:
        last = max((i for i, value in enumerate(args) if isinstance(value, fx.GraphModule)), default=-1)
        operands = list(args[last + 1 :]) + [v for v in kwargs.values() if not isinstance(v, fx.GraphModule)]
        if len(operands) == 1 and isinstance(operands[0], list):
            operands = operands[0]
        elif operands and isinstance(operands[0], list) and len(regions) > 1:
            operands = [item for value in operands if isinstance(value, list) for item in value]
        results = [self._region(region, operands, module, trace) for region in regions]
        results = [list(result) if isinstance(result, list) else [result] for result in results]
        if len(results) == 1:
            return results[0]
        # Either branch may run: each result may come from any of them.
        merged = []
        for choice in zip(*results, strict=False):
            refs = [item for item in choice if isinstance(item, Ref)]
            first = self.nodes[refs[0].index] if refs else None
            merged.append(
                self._add(RawNode("call", "branch", (refs,), {}, module, trace, first.shape, first.dtype))
                if first
                else None
            )
        return merged

    def _path(self, stack: Mapping[str, tuple[str, Any]]) -> str:
        path = next(reversed(list(stack.values())))[0]
        path = _REPEATED_CALL.sub("", path)
        path = "" if path == _MODEL else _strip(path)
        return self.names.get(path, path)
