"""States that a forward pass updates from the moments of a signal."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from varshift.flow._graph import Graph
from varshift.flow._moment_fit import Moment, accumulates, by_channel, fit_moment, layouts, made_up
from varshift.flow._replay import NotReplayable, Replay
from varshift.model import Layout

STATE_ROLES = ("parameter", "buffer", "attribute")
_MOST_STEPS = 400
_MOST_MISSES = 4
_MOST_ROWS = 4
_EQUATIONS = 8
_ACCUMULATES = 1e-4


@dataclass(frozen=True, slots=True)
class StateReading:
    """One way to read what a state holds: a moment of one node's result.

    The mean of squared deviations is the variance of a signal, the second moment of its deviations and the
    mean of their squares: which of these a norm keeps is seen only together with its mean.

    Attributes:
        input: The node.
        moment: Which moment; None where the state holds the sum of one over all that it ever saw.
        momentum: Weight of a new moment; None where it changes from batch to batch.
        layout: Where the channels are in the node's result.
        channels: Number of channels.
        rows: Number of rows of channels.
        between: The nodes through which the state's new value follows from `input`.
    """

    input: int
    moment: Moment | None
    momentum: float | None
    layout: Layout
    channels: int
    rows: int
    between: frozenset[int]


def state_nodes(graph: Graph, trainable: frozenset[str]) -> dict[str, int]:
    """The graph's nodes of tensors that a model may keep statistics in, by name."""
    return {
        node.target: index
        for index, node in enumerate(graph.nodes)
        if node.role in STATE_ROLES
        and node.target is not None
        and node.target not in trainable
        and node.dtype is not None
        and node.dtype.is_floating_point
    }


def find_updates(
    graph: Graph,
    tensors: Mapping[str, Tensor],
    trainable: frozenset[str],
    replaced: Mapping[str, int],
) -> dict[str, tuple[StateReading, ...]]:
    """The states that the pass updated from the signal, by name, with all ways to read what they hold.

    A state that follows the signal and holds none of its moments has none.

    Args:
        graph: The graph of the train-mode pass.
        tensors: The model's parameters, buffers and attributes by name.
        trainable: Names of the parameters that an optimiser updates.
        replaced: For each state whose tensor the pass replaced by another one, the node of the new one.
    """
    states = state_nodes(graph, trainable)
    finder = _Finder(graph, Replay(graph, tensors), states)
    updates: dict[str, tuple[StateReading, ...]] = {}
    for target, state in states.items():
        ends = [replaced[target]] if target in replaced else list(graph.writes.get(state, ()))
        ends = [end for end in ends if graph.signal[end]]
        if ends:
            updates[target] = finder.readings(state, ends, target in replaced)
    return updates


class _Finder:
    def __init__(self, graph: Graph, replay: Replay, states: Mapping[str, int]) -> None:
        self._graph, self._replay = graph, replay
        # Other statistics are zero while one is looked at; a single number counts batches or corrects a bias.
        self._levels: dict[int, Tensor] = {}
        self._counters: set[int] = set()
        for index, node in enumerate(graph.nodes):
            if node.role not in STATE_ROLES or node.shape is None or node.dtype is None:
                continue
            single = graph.elements(index) == 1
            if index in states.values() or (single and not node.dtype.is_floating_point):
                self._levels[index] = torch.full(node.shape, int(single)).to(node.dtype)
                if single:
                    self._counters.add(index)
        # Kinds, domains and masks: they choose rows and samples, and are no signal themselves.
        self._indices = [
            index
            for index, node in enumerate(graph.nodes)
            if node.role == "input" and node.dtype is not None and not _is_float(node.dtype)
        ]

    def readings(self, state: int, ends: list[int], replaced: bool) -> tuple[StateReading, ...]:
        """What a state may hold, given the signal-dependent operations that write it."""
        # A state that several calls update holds a mixture in the end; the first update shows the moment.
        tries = [ends[-1]] if not replaced else [ends[-1], *self._partial(state, ends[-1])]
        if len(ends) > 1:
            tries.append(ends[0])
        for end in dict.fromkeys(tries):
            found: list[StateReading] = []
            misses = 0
            for source in self._inputs(end):
                reading, possible = self._read(state, end, source, replaced)
                if reading is not None:
                    found.append(reading)
                misses = 0 if reading is not None else misses + possible
                if misses >= _MOST_MISSES:
                    break
            if found:
                return tuple(found)
        return ()

    def _partial(self, state: int, end: int) -> Iterator[int]:
        """The first operation between a state and its new tensor that depends on the signal as well."""
        graph = self._graph
        shape = graph.nodes[end].shape
        from_state = {state}
        for index in range(state + 1, end):
            if any(source in from_state for source in graph.inputs[index]):
                from_state.add(index)
                if graph.signal[index] and graph.nodes[index].shape == shape:
                    yield index
                    return

    def _inputs(self, end: int) -> Iterator[int]:
        """Nodes through which all of the signal that decides a value passes, nearest first."""
        graph = self._graph
        waiting, seen, steps = [-end], {end}, 0
        while waiting and steps < _MOST_STEPS:
            steps += 1
            index = -heapq.heappop(waiting)
            if not waiting and index != end and graph.elements(index) > 1:
                yield index
            for source in graph.inputs[index]:
                if source not in seen and self._carries(source):
                    seen.add(source)
                    heapq.heappush(waiting, -source)

    def _carries(self, index: int) -> bool:
        dtype = self._graph.nodes[index].dtype
        return self._graph.signal[index] and (dtype is None or _is_float(dtype))

    def _read(self, state: int, end: int, source: int, replaced: bool) -> tuple[StateReading | None, bool]:
        """How to read the state as a moment of a node, and whether the node can have such a moment at all."""
        graph = self._graph
        shape, sizes = graph.nodes[source].shape, graph.nodes[state].shape
        if shape is None or sizes is None or graph.nodes[source].dtype is None:
            return None, False
        whole = graph.elements(state)
        splits = [(1, whole)]
        if len(sizes) > 1 and sizes[-1] != whole:
            splits.append((whole // sizes[-1], sizes[-1]))
        plans: list[tuple[int, int, Layout]] = []
        for rows, channels in splits:
            if graph.elements(source) > channels:  # else it is a moment already
                plans.extend((rows, channels, layout) for layout in layouts(shape, channels))
        for rows, channels, layout in plans:
            for row in range(min(rows, _MOST_ROWS)):
                try:
                    held = self._fit(state, end, source, layout, (rows, channels, row), replaced)
                except NotReplayable:
                    continue
                if held is not None:
                    between = self._between(source, end)
                    return StateReading(source, *held, layout, channels, rows, between), True
        return None, bool(plans)

    def _fit(
        self,
        state: int,
        end: int,
        source: int,
        layout: Layout,
        place: tuple[int, int, int],
        replaced: bool,
    ) -> tuple[Moment | None, float | None] | None:
        """The moment that a row of the state holds and its momentum; None when it holds none."""
        rows, channels, row = place
        node = self._graph.nodes[source]
        generator = torch.Generator().manual_seed(0)
        signals, steps, moments, weights = [], [], [], []
        for _ in range(max(3, -(-_EQUATIONS // channels))):
            assert node.shape is not None
            x = made_up(node.shape, channels, layout, generator)
            one, two = (
                self._after(state, end, source, x, level, row, replaced).reshape(rows, channels)[row]
                for level in (1.0, 2.0)
            )
            kept = (two - one).mean()
            if not bool(((two - one) - kept).abs().max() <= 1e-3) or not bool(torch.isfinite(kept)):
                return None
            folded = by_channel(x, channels, layout)
            if folded is None:
                return None
            signals.append(folded)
            steps.append(one - 1)
            weights.append(1 - float(kept))
            moments.append((one - kept) / max(1 - float(kept), 1e-12))
        if all(abs(weight) < _ACCUMULATES for weight in weights):
            return (None, None) if accumulates(steps, signals) else None
        moment = fit_moment(moments, signals) if min(weights) >= _ACCUMULATES else None
        return None if moment is None else (moment, weights[0] if self._constant else None)

    def _after(
        self, state: int, end: int, source: int, x: Tensor, level: float, row: int, replaced: bool
    ) -> Tensor:
        """The state after its update by a signal, where all of it was `level` before."""
        graph = self._graph
        fixed = dict(self._levels)
        fixed[state] = torch.full_like(fixed[state], level)
        for index in self._indices:
            fixed[index] = torch.full(graph.nodes[index].shape or (), row).to(graph.nodes[index].dtype)
        fixed[source] = x.to(graph.nodes[source].dtype)
        results = self._replay.values([end, state], fixed)
        value = results[end] if replaced else results[state]
        if value.numel() != graph.elements(state):
            raise NotReplayable("its size changes")
        self._constant = not (self._counters & results.keys()) - {state}
        return value.detach().double()

    def _between(self, source: int, end: int) -> frozenset[int]:
        graph = self._graph
        above, stack = {end}, [end]
        while stack:
            for index in graph.inputs[stack.pop()]:
                if index > source and index not in above and graph.signal[index]:
                    above.add(index)
                    stack.append(index)
        return frozenset(above)


def _is_float(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point
