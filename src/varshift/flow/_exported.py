"""The one place that knows `torch.export`: from an exported program to a Flow."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, fx, nn

from varshift.flow._build import Traced, build_flows
from varshift.flow._raw import RawNode, Recording, Role, Trace, first_shape
from varshift.flow._source import TextTrace
from varshift.flow._types import Flow, Ref
from varshift.model import canonical_names, canonical_tensor

if TYPE_CHECKING:
    from torch.export import ExportedProgram

_REPEATED_CALL = re.compile(r"@\d+$")


def read_exported(
    program: ExportedProgram, model: nn.Module, *, mode: Literal["train", "eval"], prefix: str = ""
) -> Flow:
    """Reads an exported program into a flow.

    Args:
        program: What `torch.export.export` returned.
        model: The module that was exported, or one with the same module tree: its class names are read.
        mode: The mode in which it was exported; a program does not say.
        prefix: Path of `model` inside the exported module, for one that was exported inside a wrapper.

    Returns:
        The flow, as `capture` would record it. What the program writes to is not told.
    """
    names = canonical_names(model)
    reader = _Reader(names, prefix, program)
    reader.read(program.graph_module)
    return build_flows({mode: Traced(Recording(reader.nodes), "exported")}, model, names)[mode]


class _Reader:
    """Flattens an exported graph; regions with their own gradient or autocast mode are inlined."""

    def __init__(self, names: dict[str, str], prefix: str, program: ExportedProgram) -> None:
        self.nodes: list[RawNode] = []
        self._names = names
        self._prefix = prefix
        self._roles: dict[str, tuple[Role, str | None, Tensor | None]] = {}
        signature = program.graph_signature
        for name, path in signature.inputs_to_parameters.items():
            self._roles[name] = ("parameter", canonical_tensor(names, self._strip(path)), None)
        for name, path in signature.inputs_to_buffers.items():
            self._roles[name] = ("buffer", canonical_tensor(names, self._strip(path)), None)
        for name, path in signature.inputs_to_lifted_tensor_constants.items():
            value = program.constants.get(path)
            # Without a tensor among the inputs, the tensors that the model brings along are the signal.
            role: Role = "constant" if signature.user_inputs else "input"
            self._roles[name] = (role, None, value if isinstance(value, Tensor) else None)

    def read(self, graph_module: fx.GraphModule) -> None:
        """Reads all operations."""
        self.nodes.append(RawNode("output", args=(self._region(graph_module, None, "", None),)))

    def _strip(self, path: str) -> str:
        return path.removeprefix(self._prefix + ".") if self._prefix else path

    def _region(
        self, graph_module: fx.GraphModule, operands: list[Any] | None, module: str, trace: Trace | None
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
        role, target, value = self._roles.get(node.name, ("input", None, None))
        return self._add(RawNode(role, shape=shape, dtype=dtype, target=target, value=value))

    def _attribute(self, graph_module: fx.GraphModule, node: fx.Node) -> Any:
        value: Any = operator.attrgetter(str(node.target))(graph_module)
        if isinstance(value, fx.GraphModule):
            return value
        if isinstance(value, Tensor):
            return self._add(RawNode("constant", shape=tuple(value.shape), dtype=value.dtype, value=value))
        return None

    def _call(
        self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any], module: str, trace: Trace | None
    ) -> Any:
        stack = node.meta.get("nn_module_stack")
        module = self._path(stack) if stack else module
        text = node.meta.get("stack_trace")
        trace = TextTrace(text) if text else trace
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
        trace: Trace | None,
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
        path = "" if path == self._prefix else self._strip(path)
        return self._names.get(path, path)
