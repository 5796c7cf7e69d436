"""Ways through a captured network: what is upstream, what is downstream, and what every way passes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING

from ._paths import readers_of

if TYPE_CHECKING:
    from varshift.flow import Flow, Node

_LEARNED = ("parameter", "buffer", "attribute")


class Ways:
    """Answers about the ways of the signal in one flow.

    Attributes:
        flow: The flow.
        readers: The nodes that read the value of each node.
        signal: The nodes whose values derive from the inputs of the network.
        norms: The calls of norms that keep running statistics.
        weights: The operations that mix units of the signal by something learned.
        outputs: The nodes whose values the network returns.
    """

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self.readers = readers_of(flow)
        self.signal = {node.index for node in flow.nodes if node.kind == "input"}
        learned = {node.index for node in flow.nodes if node.kind in _LEARNED}
        for node in flow.nodes:
            if any(index in self.signal for index in node.inputs):
                self.signal.add(node.index)
            elif any(index in learned for index in node.inputs):
                learned.add(node.index)  # a weight that is computed from others, as by a parametrisation
        calls = {call for norm in flow.norms if norm.tracked for call in norm.calls}
        self.norms = {node.index for node in flow.nodes if node.kind == "norm"} & calls
        self.weights = {
            node.index
            for node in flow.nodes
            if node.kind == "weight"
            and node.index in self.signal
            and not learned.isdisjoint(node.inputs)
            and "embedding" not in node.op  # its signal are numbers of rows
        }
        self.outputs = tuple(
            index
            for node in flow.nodes
            if node.kind == "output"
            for index in node.inputs
            if index in self.signal
        )

    def upstream(self, starts: Iterable[int]) -> set[int]:
        """Some nodes and all signals that they are made from."""
        found = {start for start in starts if start in self.signal}
        stack = list(found)
        while stack:
            for index in self.flow.nodes[stack.pop()].inputs:
                if index in self.signal and index not in found:
                    found.add(index)
                    stack.append(index)
        return found

    def downstream(self, start: int) -> set[int]:
        """All nodes that a node's result arrives at."""
        found: set[int] = set()
        stack = [start]
        while stack:
            fresh = [index for index in self.readers[stack.pop()] if index not in found]
            found.update(fresh)
            stack.extend(fresh)
        return found

    def meetings(self, start: int, after: Collection[int]) -> Iterator[tuple[int, list[int]]]:
        """The sums at which a node's result meets other signals, with those.

        Args:
            start: The node.
            after: All that is downstream of it.
        """
        for index in sorted(after):
            node = self.flow.nodes[index]
            free = [one for one in node.inputs if one in self.signal and one not in after and one != start]
            if node.kind == "join" and free:
                yield index, free

    def passes(
        self, nodes: Collection[int], sources: Iterable[int], end: int, within: Collection[int]
    ) -> bool:
        """Whether every way from some nodes to another passes one of others.

        Args:
            nodes: The nodes in question.
            sources: Where the ways begin.
            end: Where they end.
            within: The nodes that they may pass; the sources need not be among them.
        """
        if end in nodes:
            return True
        stack = [source for source in sources if source not in nodes]
        seen = set(stack)
        while stack:
            current = stack.pop()
            if current == end:
                return False
            for index in self.readers[current]:
                if index not in seen and index not in nodes and index in within:
                    seen.add(index)
                    stack.append(index)
        return True

    def signal_input(self, node: Node | int) -> int | None:
        """The first signal that an operation reads, None where it reads none."""
        node = self.flow.nodes[node] if isinstance(node, int) else node
        return next((index for index in _arguments(node) if index in self.signal), None)


def _arguments(node: Node) -> list[int]:
    """The nodes that an operation reads, in the order of its arguments where they are known."""
    named: list[int] = []
    for value in (*node.args, *node.kwargs.values()):
        items = value if isinstance(value, (list, tuple)) else (value,)
        named += [item.index for item in items if hasattr(item, "index") and not callable(item.index)]
    return [index for index in dict.fromkeys((*named, *node.inputs)) if index in node.inputs]
