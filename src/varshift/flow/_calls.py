"""Where in one mode's graph norms written by hand normalise their input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from varshift.flow._census import HandNorm
from varshift.flow._graph import Graph
from varshift.flow._uses import AFFINE, is_float
from varshift.flow._vocabulary import STATISTICS


@dataclass(frozen=True, slots=True)
class HandCall:
    """A call of a norm written by hand.

    Attributes:
        norm: The norm.
        node: Where the first of its statistics meets its input.
        input: The node of its input.
        batch_statistics: Whether it normalises with statistics of the batch.
    """

    norm: HandNorm
    node: int
    input: int
    batch_statistics: bool


def find_calls(graph: Graph, norms: Sequence[HandNorm]) -> tuple[list[HandCall], set[int]]:
    """The calls of norms written by hand, in order, and the nodes that compute their statistics.

    Args:
        graph: The graph.
        norms: The norms; their `computes` are nodes of this graph, or empty.
    """
    if not norms:
        return [], set()
    walk = _Walk(graph, norms)
    for index, node in enumerate(graph.nodes):
        if node.role == "call":
            walk.visit(index)
    return walk.calls, walk.statistics()


class _Walk:
    """Goes through a graph and notes what is a statistic, and where statistics meet a signal."""

    def __init__(self, graph: Graph, norms: Sequence[HandNorm]) -> None:
        self._graph = graph
        self.calls: list[HandCall] = []
        self._kept: dict[int, HandNorm] = {}  # running statistics, and what is made of them
        self._batch: dict[int, HandNorm] = {}  # statistics of this pass
        self._done: dict[int, HandNorm] = {}  # what a norm made of its input so far
        targets = {target: norm for norm in norms for target in norm.targets}
        for index, node in enumerate(graph.nodes):
            if node.target in targets:
                self._kept[index] = targets[node.target]
        self._computes = {index: norm for norm in norms for index in norm.computes}
        self._by_name = {norm.name: norm for norm in norms}

    def statistics(self) -> set[int]:
        """The nodes that compute statistics."""
        return self._batch.keys() | {i for i in self._kept if self._graph.nodes[i].role == "call"}

    def visit(self, index: int) -> None:
        """Looks at one operation."""
        graph, info = self._graph, self._graph.infos[index]
        sources = graph.inputs[index]
        batch = next((self._batch[s] for s in sources if s in self._batch), None)
        kept = next((self._kept[s] for s in sources if s in self._kept), None)
        signals = [
            s
            for s in sources
            if graph.signal[s] and is_float(graph, s) and s not in self._batch and s not in self._kept
        ]
        norm = batch or kept
        if kept is not None and info.writes and self._writes_state(index):
            self._kept[index] = kept
        elif norm is not None and signals:
            self._meet(index, norm, signals, batch is not None)
        elif batch is not None:
            self._batch[index] = batch
        elif kept is not None:
            self._kept[index] = kept
        elif signals:
            self._read(index, signals)

    def _writes_state(self, index: int) -> bool:
        writes = self._graph.infos[index].writes
        return any(o.argument in writes and o.node in self._kept for o in self._graph.operands[index])

    def _meet(self, index: int, norm: HandNorm, signals: list[int], batch: bool) -> None:
        users = self._graph.users[index]
        if index in self._computes and users and all(user in self._computes for user in users):
            return  # a deviation of which only the variance is taken
        if any(self._done.get(s) is norm for s in signals):
            self._done[index] = norm
        elif self._graph.infos[index].name in AFFINE:
            self._done[index] = norm
            self.calls.append(HandCall(norm, index, signals[0], batch))

    def _read(self, index: int, signals: list[int]) -> None:
        graph, info = self._graph, self._graph.infos[index]
        norm = self._computes.get(index)
        if norm is not None:
            states = norm.states
            most = graph.elements(norm.input) - 1 if states.per_sample else states.channels * states.rows
            if graph.elements(index) <= most:
                self._batch[index] = norm
                return
        elif info.name in STATISTICS:  # of a norm whose update was not followed, or once more for the output
            norm = self._around(graph.nodes[index].module)
            if norm is not None and graph.elements(index) == norm.states.channels:
                self._batch[index] = norm
                return
        done = next((self._done[s] for s in signals if s in self._done), None)
        if done is not None and info.name in AFFINE and len(signals) == 1:
            self._done[index] = done

    def _around(self, module: str) -> HandNorm | None:
        """The norm of a module, or of one around it."""
        while module not in self._by_name and module:
            module = module.rpartition(".")[0]
        return self._by_name.get(module)
