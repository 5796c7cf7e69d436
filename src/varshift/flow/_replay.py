"""Runs a small piece of a recorded graph again, on the host and on other values than those of the pass."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from varshift.flow._graph import Graph
from varshift.flow._ops import bind
from varshift.flow._raw import RawNode, iterate_refs, map_refs
from varshift.flow._types import Ref
from varshift.flow._vocabulary import DROPOUT, RANDOM, RECURRENT

_MOST_NODES = 400
_UNREPEATABLE = RANDOM | RECURRENT | set(DROPOUT)


class NotReplayable(Exception):  # noqa: N818 - says that a question has no answer, is no fault
    """A piece of the graph cannot be run again: it reads inputs of the network, draws numbers or is large."""


class Replay:
    """Runs pieces of one graph again.

    Operations that write in place run in their recorded order on copies, so that every value is what it was
    in the pass and nothing of the model changes.

    Args:
        graph: The graph.
        tensors: The model's parameters, buffers and attributes by canonical name.
    """

    def __init__(self, graph: Graph, tensors: Mapping[str, Tensor]) -> None:
        self._graph = graph
        self._tensors = tensors

    def values(self, wanted: Iterable[int], fixed: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """The results of nodes, and of all that they were computed from.

        Args:
            wanted: The nodes.
            fixed: Values to start from, in place of what these nodes hold.

        Raises:
            NotReplayable: If the values cannot be computed from the fixed ones.
        """
        results: dict[int, Tensor] = {}
        with torch.no_grad():
            for index in self._order(wanted, fixed):
                try:
                    results[index] = self._value(index, fixed, results)
                except NotReplayable:
                    raise
                except Exception as error:  # other values than the recorded ones may not suit an operation
                    raise NotReplayable(str(error)) from error
        return results

    def _order(self, wanted: Iterable[int], fixed: Mapping[int, Tensor]) -> list[int]:
        graph, seen, stack = self._graph, set[int](), list(wanted)
        while stack:
            index = stack.pop()
            if index in seen:
                continue
            seen.add(index)
            if len(seen) > _MOST_NODES:
                raise NotReplayable("it is too large")
            if index in fixed:
                continue
            if graph.nodes[index].role in ("input", "output"):
                raise NotReplayable("it reads an input of the network")
            if graph.infos[index].name in _UNREPEATABLE:
                raise NotReplayable("it draws random numbers")
            for operand in graph.operands[index]:
                stack += (operand.ref, operand.node)
            # What an operation overwrites is no operand of it, but its memory must be the right one.
            arguments = bind(graph.nodes[index]) if graph.infos[index].writes else {}
            for name in graph.infos[index].writes:
                stack.extend(iterate_refs(arguments.get(name)))
        return sorted(seen)

    def _value(self, index: int, fixed: Mapping[int, Tensor], results: dict[int, Tensor]) -> Tensor:
        if index in fixed:
            return fixed[index].clone()
        node = self._graph.nodes[index]
        if node.role != "call":
            value = node.value if node.value is not None else self._tensors.get(node.target or "")
            if value is None:
                raise NotReplayable("a value is unknown")
            return value.detach().to("cpu", copy=True)
        if isinstance(node.op, str):
            raise NotReplayable("it has no operation")

        def result(ref: Ref) -> Tensor:
            known = results.get(ref.index)
            return _shaped_like(self._graph.nodes[ref.index]) if known is None else known

        args = _on_host(map_refs(tuple(node.args), result))
        if node.op is operator.getitem:
            return args[0][args[1]]
        return node.op(*args, **_on_host(map_refs(dict(node.kwargs), result)))


def _on_host(value: Any) -> Any:
    """Arguments of an operation with the host in place of whatever device the model was on."""
    if isinstance(value, torch.device):
        return torch.device("cpu")
    if isinstance(value, (tuple, list)):
        return type(value)(_on_host(item) for item in value)
    if isinstance(value, dict):
        return {key: _on_host(item) for key, item in value.items()}
    return value


def _shaped_like(node: RawNode) -> Tensor:
    """A tensor that only lends its shape and type."""
    if node.shape is None or node.dtype is None:
        raise NotReplayable("a shape is unknown")
    return torch.zeros(node.shape, dtype=node.dtype)
