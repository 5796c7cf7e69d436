"""From a place in the captured network to the module or the call at which it is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from varshift.fixes._slots import Slot, words
from varshift.fixes._surgery import Refused
from varshift.flow import CallFrame, Flow, Node
from varshift.rules import Ways

Side = Literal["before", "after"]
_Edge = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Address:
    """Where something is put into the signal.

    Attributes:
        path: Path of the module; where `calls` are given, of the one whose method makes the call.
        side: In front of the first tensor that the module or the call is given, or after its result.
        node: An operation at this place.
        calls: The calls in the user's code that lead to the one in question, the outermost first; empty
            where it is the module as a whole.
    """

    path: str
    side: Side
    node: Node
    calls: tuple[CallFrame, ...] = ()


@dataclass(frozen=True, slots=True)
class _Group:
    """The operations of a module, or of a call in the user's code."""

    path: str
    nodes: frozenset[int]
    node: Node
    calls: tuple[CallFrame, ...] = ()


class Addresses:
    """Finds modules and calls of one flow at which exactly the wished places are, and no others."""

    def __init__(self, flow: Flow, ways: Ways) -> None:
        self._flow = flow
        self._ways = ways
        self._of_module: dict[str, set[int]] = defaultdict(set)
        self._calls = {
            node.index: node.calls
            for node in flow.nodes
            if node.index in ways.signal and node.kind not in ("input", "output")
        }
        for index in self._calls:
            path = flow.nodes[index].module
            self._of_module[path].add(index)
            while path:
                path = path.rpartition(".")[0]
                self._of_module[path].add(index)

    def find(self, slots: Iterable[Slot], prefer: Side = "before") -> tuple[Address, ...]:
        """The addresses of some places.

        Args:
            slots: The places: what is put at the addresses acts at all of them, and nowhere else.
            prefer: Whether to look at what reads the values first, or at what makes them.

        Raises:
            Refused: If one of them is neither at a module nor at a call.
        """
        slots = tuple(slots)
        wanted = frozenset[_Edge]().union(*(slot.edges for slot in slots))
        missing = set(wanted)
        addresses = []
        for slot in slots:
            while rest := missing & slot.edges:
                address, covered = self._address(min(rest), wanted, prefer)
                addresses.append(address)
                missing -= covered
        return tuple(addresses)

    def _address(
        self, edge: _Edge, wanted: frozenset[_Edge], prefer: Side
    ) -> tuple[Address, frozenset[_Edge]]:
        for side, group in self._candidates(edge, prefer):
            edges = self._entries(group) if side == "before" else self._exits(group)
            if edge in edges and edges <= wanted:
                return Address(group.path, side, group.node, group.calls), edges
        value, reader = (self._flow.nodes[index] for index in edge)
        raise Refused(
            f"there is no module and no call between {words(value)} and {words(reader)} at which noise could "
            "be put: write it there by hand."
        )

    def _candidates(self, edge: _Edge, prefer: Side) -> Iterator[tuple[Side, _Group]]:
        """Modules first, then calls."""
        value, reader = edge
        sides: list[tuple[Side, int]] = [("before", reader), ("after", value)]
        if prefer == "after":
            sides.reverse()
        for groups in (self._modules, self._called):
            for side, index in sides:
                if index in self._calls:
                    for group in groups(self._flow.nodes[index]):
                        yield side, group

    def _modules(self, node: Node) -> Iterator[_Group]:
        """The modules that are at work at a node, the innermost first, where their forward is what runs."""
        path, calls = node.module, self._calls[node.index]
        while path:
            entry = next((call for call in calls if _is_within(call.module, path)), None)
            if entry is None or entry.module != path or entry.function.endswith(".forward"):
                yield _Group(path, frozenset(self._of_module[path]), node)
            path = path.rpartition(".")[0]

    def _called(self, node: Node) -> Iterator[_Group]:
        """The calls that led to a node: those of the innermost module first, of one module the outermost."""
        calls = self._calls[node.index]
        for end in sorted(range(len(calls)), key=lambda place: (-_changes(calls, place), place)):
            call = calls[end]
            if call.column is not None:
                nodes = frozenset(index for index, way in self._calls.items() if call in way)
                yield _Group(call.module, nodes, node, calls[: end + 1])

    def _entries(self, group: _Group) -> frozenset[_Edge]:
        """Where the signal enters a group; none where a run of it reads anything but one signal first."""
        runs = self._runs(group)
        edges: set[_Edge] = set()
        for run in runs:
            entering = {
                (source, index)
                for index in run
                for source in self._flow.nodes[index].inputs
                if source in self._ways.signal and source not in group.nodes
            }
            if len({source for source, _ in entering}) != 1:
                return frozenset()
            if any(self._ways.signal_input(index) != source for source, index in entering):
                return frozenset()
            edges |= entering
        if len({source for source, _ in edges}) > 1 and len({self._steps(group, run) for run in runs}) > 1:
            return frozenset()  # several signals go different ways: they are arguments of one run
        return frozenset(edges)

    def _exits(self, group: _Group) -> frozenset[_Edge]:
        """Where the signal leaves a group; none where a run of it makes more than one value."""
        edges: set[_Edge] = set()
        results = set()
        for run in self._runs(group):
            leaving = {
                (index, reader)
                for index in run
                for reader in self._ways.readers[index]
                if reader not in group.nodes
            }
            values = {value for value, _ in leaving}
            if len(values) != 1:
                return frozenset()
            results |= self._steps(group, values)
            edges |= leaving
        return frozenset(edges) if len(results) == 1 else frozenset()

    def _runs(self, group: _Group) -> list[frozenset[int]]:
        """The operations of a group by the values that they share; none where one run feeds the next."""
        members: dict[int, set[int]] = {}
        for index in sorted(group.nodes):
            run = {index}
            for source in self._flow.nodes[index].inputs:
                run |= members.get(source, set())
            for node in run:
                members[node] = run
        runs = {id(run): frozenset(run) for run in members.values()}
        if any(len(self._steps(group, run)) < len(run) for run in runs.values()):
            return []  # the same step twice on one way
        return list(runs.values())

    def _steps(self, group: _Group, nodes: Iterable[int]) -> frozenset[object]:
        """What identifies operations inside a group, whichever run of it makes them."""
        steps = []
        for index in nodes:
            node, calls = self._flow.nodes[index], self._calls[index]
            if group.calls:
                inside = calls[calls.index(group.calls[-1]) + 1 :]
            else:
                inside = tuple(call for call in calls if _is_within(call.module, group.path))
            steps.append((node.module, inside, node.overload))
        return frozenset(steps)


def _is_within(module: str, path: str) -> bool:
    return module == path or module.startswith(path + ".")


def _changes(calls: tuple[CallFrame, ...], place: int) -> int:
    """How many times the module changed on the way to a call."""
    return sum(caller.module != called.module for caller, called in pairwise(calls[: place + 1]))
