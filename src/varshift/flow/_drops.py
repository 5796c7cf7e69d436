"""What a drop path drops: the branch, as intended, or the way around it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from varshift.flow._classify import Site
from varshift.flow._graph import Graph
from varshift.flow._reach import mixes_units, summands
from varshift.flow._vocabulary import ACTIVATIONS, CONCATENATIONS, VIEWS

_SHORT_WAY = 128


class DropAnalysis:
    """Answers for all drop paths of one graph."""

    def __init__(self, graph: Graph, carried: list[int], norm_calls: dict[int, int]) -> None:
        self._graph = graph
        self._carried = carried
        self._norm_calls = norm_calls
        self._ancestors: list[int] = []
        for index in range(len(graph.nodes)):
            bits = 0
            if graph.signal[index]:
                bits = 1 << index
                for source in graph.inputs[index]:
                    bits |= self._ancestors[source]
            self._ancestors.append(bits)
        self._live = 0
        for output in graph.outputs:
            self._live |= self._ancestors[output]
        if not self._live:  # a model that returns no tensor: its results are read elsewhere
            self._live = -1

    def drops(self, position: int, site: Site) -> str | None:
        """What site number `position` multiplies; see `NoiseSite.drops`."""
        last = site.joins[-1]
        if not self._live >> last & 1:
            return "nothing"
        bit = 1 << position
        # Right behind the gate any other signal will do; further on it must be one that went around it.
        found = self._first_meeting(last, bit, through_weights=False, anywhere=True)
        if found is None:
            found = self._first_meeting(last, bit, through_weights=True, anywhere=False)
        if found is not None:
            return self._compare(*found)
        # One of several inputs is dropped as a whole: on purpose or not, nobody can tell.
        others = self._first_meeting(last, bit, through_weights=True, anywhere=True)
        return "everything" if others is None else None

    def _first_meeting(
        self, start: int, bit: int, *, through_weights: bool, anywhere: bool
    ) -> tuple[int, int] | None:
        """Where the gated signal first meets one that did not pass the gate: both operands there."""
        graph = self._graph
        origin = -1 if anywhere else self._ancestors[start]
        queue, seen = deque([start]), {start}
        best: tuple[int, int, int] | None = None
        while queue:
            node = queue.popleft()
            for user in graph.users[node]:
                if user in seen or graph.nodes[user].role == "output" or not self._live >> user & 1:
                    continue
                if best is not None and user >= best[0]:
                    continue
                seen.add(user)
                groups = summands(graph, user)
                if not groups and graph.infos[user].name in CONCATENATIONS:
                    groups = [[operand.node] for operand in graph.signals(user)]
                other = next(
                    (
                        part
                        for group in groups
                        for part in group
                        if not self._carried[part] & bit and self._ancestors[part] & origin
                    ),
                    None,
                )
                if other is not None:
                    best = (user, node, other)
                    continue
                if not through_weights and (mixes_units(graph, user) or user in self._norm_calls):
                    continue
                queue.append(user)
        return None if best is None else best[1:]

    def _compare(self, gated: int, free: int) -> str | None:
        """Tells which of two summands is the shortcut of the other."""
        ancestors = self._ancestors
        near_gated, near_free = self._unweighted(gated), self._unweighted(free)
        if any(ancestors[gated] >> node & 1 for node in near_free - near_gated):
            return "branch"
        if any(ancestors[free] >> node & 1 for node in near_gated - near_free):
            return "identity"
        fork = (ancestors[gated] & ancestors[free]).bit_length() - 1
        if fork < 0:
            return "branch"  # the other signal comes from elsewhere: nothing is bypassed by dropping this one
        gated_weights, free_weights = self._weights(fork, gated), self._weights(fork, free)
        if gated_weights > free_weights:
            return "branch"
        if gated_weights <= 1 and free_weights >= 2:
            return "identity"
        if gated_weights == free_weights == 0:
            way_gated, way_free = self._work(fork, gated), self._work(fork, free)
            if way_free == 0 and way_gated > 0:
                return "branch"
            if way_gated == 0 and way_free > 0:
                return "identity"
        return None

    def _unweighted(self, node: int) -> set[int]:
        """A value and the earlier values it holds without any weight or norm in between."""
        graph = self._graph
        queue, seen = deque([node]), {node}
        while queue and len(seen) < _SHORT_WAY:
            current = queue.popleft()
            name = graph.infos[current].name
            if mixes_units(graph, current) or current in self._norm_calls:
                continue
            if name not in ACTIVATIONS and name not in VIEWS:
                continue
            for source in graph.inputs[current]:
                if graph.signal[source] and source not in seen:
                    seen.add(source)
                    queue.append(source)
        return seen

    def _weights(self, start: int, end: int) -> int:
        """Largest number of weight operations on a way from one node to another."""
        graph = self._graph
        return self._longest(
            start, end, lambda node: int(mixes_units(graph, node) and self._has_weight(node))
        )

    def _work(self, start: int, end: int) -> int:
        graph = self._graph
        return self._longest(start, end, lambda node: int(graph.infos[node].name not in VIEWS))

    def _has_weight(self, node: int) -> bool:
        graph = self._graph
        if node in self._norm_calls:
            return False
        return any(
            graph.learned[operand.node] and len(graph.nodes[operand.node].shape or ()) >= 2
            for operand in graph.operands[node]
        )

    def _longest(self, start: int, end: int, cost: Callable[[int], int]) -> int:
        within = self._ancestors[end]
        best = {start: 0}
        for node in range(start + 1, end + 1):
            if not within >> node & 1:
                continue
            ways = [best[source] for source in self._graph.inputs[node] if source in best]
            if ways:
                best[node] = max(ways) + cost(node)
        return best.get(end, 0)
