"""Where noise is in a residual block: in the branch's slot, in front of a norm, or after the last weight."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ._paths import readers_of

if TYPE_CHECKING:
    from varshift.flow import Flow

BranchPlace = Literal["before-norm", "slot", "after-weight"]


@dataclass(frozen=True, slots=True)
class Branch:
    """The place of noise in the branch of a residual sum.

    Attributes:
        place: ``"before-norm"`` where a norm of the branch is downstream; ``"slot"`` after its last norm and
            before its last weight; ``"after-weight"`` after both.
        has_slot: Whether the branch has a weight after its last norm.
        join: The node that adds the branch up.
        norms: Number of norms in the branch.
    """

    place: BranchPlace
    has_slot: bool
    join: int
    norms: int


class Branches:
    """Answers for the noise sites of one flow."""

    def __init__(self, flow: Flow) -> None:
        self._flow = flow
        self._readers = readers_of(flow)
        self._signal = {node.index for node in flow.nodes if node.kind == "input"}
        for node in flow.nodes:
            if any(index in self._signal for index in node.inputs):
                self._signal.add(node.index)
        tracked = {call for norm in flow.norms if norm.tracked for call in norm.calls}
        self._norms = {node.index for node in flow.nodes if node.kind == "norm"} & tracked
        self._weights = {node.index for node in flow.nodes if node.kind == "weight"}

    def branch(self, start: int) -> Branch | None:
        """The place of the node at which noise meets the signal, None outside the branch of a sum."""
        if start not in self._signal:
            return None
        before = self._upstream([start])
        after = self._downstream(start)
        for index in sorted(after):
            node = self._flow.nodes[index]
            if node.kind != "join":
                continue
            free = [one for one in node.inputs if one in self._signal and one not in after and one != start]
            if not free:
                continue
            common = self._upstream(free) & before
            if not common:
                return None  # two signals that have nothing in common are no branch and its shortcut
            return self._within(start, index, max(common), free, after)
        return None

    def _within(
        self, start: int, join: int, fork: int, free: Iterable[int], after: set[int]
    ) -> Branch | None:
        gated = [one for one in self._flow.nodes[join].inputs if one in after or one == start]
        from_fork = self._downstream(fork)
        branch = (self._upstream(gated) & from_fork) | {start}
        shortcut = self._upstream(free) & from_fork
        weights, norms = sorted(branch & self._weights), sorted(branch & self._norms)
        if not norms or len(weights) <= len(shortcut & self._weights):
            return None
        later = branch & after
        has_slot = any(weight > norms[-1] for weight in weights)
        if later & self._norms:
            return Branch("before-norm", has_slot, join, len(norms))
        return Branch("slot" if later & self._weights else "after-weight", has_slot, join, len(norms))

    def _upstream(self, starts: Iterable[int]) -> set[int]:
        """Some nodes and all signals that they are made from."""
        found = {start for start in starts if start in self._signal}
        stack = list(found)
        while stack:
            for index in self._flow.nodes[stack.pop()].inputs:
                if index in self._signal and index not in found:
                    found.add(index)
                    stack.append(index)
        return found

    def _downstream(self, start: int) -> set[int]:
        """All nodes that a node's result arrives at."""
        found: set[int] = set()
        stack = [start]
        while stack:
            fresh = [index for index in self._readers[stack.pop()] if index not in found]
            found.update(fresh)
            stack.extend(fresh)
        return found
