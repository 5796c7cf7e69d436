"""Walks a Flow node by node; what a node does to its operands is left to the passes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from varshift.flow import Flow, Node, NormSite, Ref, UnknownOperator, arguments_of, overwrites

from ._anchor import Anchor
from ._signal import Signal, Unknown

Anchors = Mapping[tuple[str, int], Anchor]
_LEAVES = ("input", "parameter", "buffer", "constant")
HALF = (torch.float16, torch.bfloat16)


class UnknownOperand(ValueError):  # noqa: N818 - no error of the operation that meets it
    """An operation reads what could not be computed."""


@dataclass(slots=True)
class Interpreter(ABC):
    """Walks a Flow and keeps the value of every node for as long as something reads it."""

    flow: Flow
    tensors: Mapping[str, Tensor]
    inputs: Sequence[Tensor]
    values: dict[int, Any] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    norm_at: dict[int, tuple[NormSite, int]] = field(default_factory=dict)
    watch: Callable[[Node], None] | None = None
    start: int = 0
    last: dict[int, list[int]] = field(default_factory=dict)
    held: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.norm_at = {
            index: (site, call) for site in self.flow.norms for call, index in enumerate(site.calls)
        }

    def run(self) -> None:
        """Runs all nodes, or those from `start` on."""
        self.last, self.held = _last_readers(self.flow), self.kept()
        nodes = self.flow.nodes
        given = iter(self.inputs[sum(node.kind == "input" for node in nodes[: self.start]) :])
        for node in nodes[self.start :]:
            if node.kind == "input":
                self.values[node.index] = self.enter(next(given, None))
            elif node.kind in ("parameter", "buffer"):
                self.values[node.index] = self.tensors.get(node.target or "", Unknown())
            elif node.kind in ("constant", "attribute"):
                self.values[node.index] = node.value if isinstance(node.value, Tensor) else Unknown()
            elif node.kind != "output":
                self._call(node)
            if node.kind in _LEAVES and isinstance(self.values[node.index], Unknown):
                self.failed.setdefault(node.target or node.kind, "its value is not known")
            if self.watch is not None:
                self.watch(node)
            for index in self.last.get(node.index, ()):
                if index not in self.held:
                    self.values.pop(index, None)

    def kept(self) -> set[int]:
        """Nodes whose values are read later than the nodes say."""
        return set()

    def read_after(self, node: Node, index: int) -> bool:
        """Whether anybody reads a value once a node, the last to be called, has read it."""
        return self.watch is not None or index in self.held or index not in self.last.get(node.index, ())

    def enter(self, x: Tensor | None) -> Any:
        """An input of the network."""
        return Unknown() if x is None else x

    def _call(self, node: Node) -> None:
        try:
            result = self.call(node)
        except UnknownOperand:  # the operation that lost it has been named
            result = Unknown()
        except (
            UnknownOperator,
            RuntimeError,
            TypeError,
            ValueError,
            IndexError,
            NotImplementedError,
        ) as error:
            self.failed.setdefault(node.op, f"{type(error).__name__}: {error}".splitlines()[0])
            result = Unknown()
        result = wide(result)
        self.values[node.index] = result
        if overwrites(node) and node.args and isinstance(node.args[0], Ref):
            self.values[node.args[0].index] = result

    @abstractmethod
    def call(self, node: Node) -> Any:
        """The result of a call."""

    def operands(self, node: Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments with the values of other nodes filled in."""
        return self.fill(node.args), {key: self.fill(value) for key, value in node.kwargs.items()}

    def fill(self, value: Any) -> Any:
        """A nested argument with the values of other nodes filled in."""
        if isinstance(value, Ref):
            found = self.values.get(value.index, Unknown())
            if isinstance(found, Unknown):
                self.blame(value.index, found)
                raise UnknownOperand
            return found
        if isinstance(value, (tuple, list)):
            return type(value)(self.fill(item) for item in value)
        return value

    def blame(self, index: int, value: Unknown) -> None:
        """Names the operation that made an unknown value which something reads."""
        node = self.flow.nodes[index]
        while node.op == "getitem" and node.inputs:
            node = self.flow.nodes[node.inputs[0]]
        if value.reason:
            self.failed.setdefault(node.op, value.reason)

    def statistics(self, node: Node) -> dict[str, Any]:
        """Arguments of a batch norm by name."""
        names = ("weight", "bias", "running_mean", "running_var", "eps")
        arguments = arguments_of(node)
        named = {name: self.fill(arguments.get(name)) for name in names}
        given = arguments.get("input")
        named["input"] = self.values.get(given.index, Unknown()) if isinstance(given, Ref) else given
        return named


def wide(value: Any) -> Any:
    """Half-precision results in single precision: differences of small noise would drown in rounding."""
    if isinstance(value, Tensor):
        return value.float() if value.dtype in HALF else value
    if isinstance(value, Signal) and value.mean.dtype in HALF:
        return value.but(
            mean=value.mean.float(),
            variance=None if value.variance is None else value.variance.float(),
            draw=None if value.draw is None else value.draw.float(),
            mask=None,
        )
    if isinstance(value, (tuple, list)):
        return type(value)(wide(item) for item in value)
    return value


def _last_readers(flow: Flow) -> dict[int, list[int]]:
    """For every node the values that nothing reads after it."""
    last: dict[int, int] = {}

    def visit(value: Any, reader: int) -> None:
        if isinstance(value, Ref):
            last[value.index] = reader
        elif isinstance(value, (tuple, list)):
            for item in value:
                visit(item, reader)

    for node in flow.nodes:
        visit(node.args, node.index)
        visit(tuple(node.kwargs.values()), node.index)
        for index in node.inputs:
            last[index] = node.index
    done: dict[int, list[int]] = {}
    for index, reader in last.items():
        done.setdefault(reader, []).append(index)
    return done
