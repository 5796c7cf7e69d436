"""Which signal a value is a multiple of: ``x + x * r`` and ``x * (1 + r)`` are both x times a factor."""

from __future__ import annotations

from collections.abc import Iterable

from varshift.flow._graph import Graph, Operand
from varshift.flow._vocabulary import PRODUCTS

_SAME = frozenset(
    {"alias", "clone", "contiguous", "detach", "to", "_to_copy", "float", "double", "half", "bfloat16", "neg"}
)
_QUOTIENTS = frozenset({"div", "divide", "true_divide"})
_PLAIN_SUMS = frozenset({"add", "sub", "subtract", "rsub"})
_MOST_STEPS = 24


class Factors:
    """Finds common factors in one graph; every answer is kept."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._known: dict[int, tuple[int, ...]] = {}

    def unit(self, index: int) -> int | None:
        """The nearest signal that a node's result is a multiple of, element by element, or None."""
        return next(iter(self.units(index)[1:]), None)

    def same(self, first: int, second: int) -> bool:
        """Whether two values are multiples of one signal."""
        return bool(set(self.units(first)) & set(self.units(second)))

    def units(self, index: int) -> tuple[int, ...]:
        """All signals that a value is a multiple of, the value itself first, then the nearest."""
        if index not in self._known:
            self._known[index] = (index,)  # for the recursion: a value is a multiple of itself
            sources = self._linear_in(index)
            if sources:
                common = self._common(sources)
                self._known[index] = (index, *common)[:_MOST_STEPS]
        return self._known[index]

    def _common(self, nodes: Iterable[int]) -> list[int]:
        lists = [self.units(node) for node in dict.fromkeys(nodes)]
        shared = set(lists[0]).intersection(*lists[1:])
        return [node for node in lists[0] if node in shared]

    def _linear_in(self, index: int) -> list[int]:
        """The signal operands of an operation that is linear in them taken together; empty for any other."""
        graph = self._graph
        name = graph.infos[index].name
        signals: dict[str, list[Operand]] = {}
        for operand in graph.signals(index):
            signals.setdefault(operand.argument, []).append(operand)
        nodes = [operand.node for operands in signals.values() for operand in operands]
        if any(graph.nodes[node].shape != graph.nodes[index].shape for node in nodes) or "" in signals:
            return []
        given = set(signals)
        if name in _SAME:
            linear = len(nodes) == 1
        elif name in PRODUCTS:
            linear = len(nodes) == 1 and (name not in _QUOTIENTS or "self" in given)
        elif name in _PLAIN_SUMS:
            linear = {"self", "other"} <= given
        elif name == "addcmul":
            linear = given in ({"self", "tensor1"}, {"self", "tensor2"})
        elif name == "lerp":
            linear = given == {"self", "end"}
        elif name == "where":
            linear = given == {"self", "other"}
        else:
            linear = False
        return nodes if linear else []
