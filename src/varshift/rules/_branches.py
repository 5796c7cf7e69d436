"""Where noise is in a residual block: in the branch's slot, in front of a norm, or after the last weight."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ._ways import Ways

if TYPE_CHECKING:
    from varshift.flow import Flow

BranchPlace = Literal["before-norm", "slot", "after-weight"]


@dataclass(frozen=True, slots=True)
class Branch:
    """The place of noise in the branch of a residual sum.

    Attributes:
        place: ``"before-norm"`` where a norm of the branch is downstream; ``"slot"`` after its last norm and
            before its last weight; ``"after-weight"`` after both.
        slot: The last weight of the branch, the noise's place being in front of it; None where no weight that
            all of the branch passes comes after its last norm.
        join: The node that adds the branch up.
        norms: Number of norms in the branch.
    """

    place: BranchPlace
    slot: int | None
    join: int
    norms: int

    @property
    def has_slot(self) -> bool:
        """Whether the branch has a weight that all of it passes after its last norm."""
        return self.slot is not None


class Branches:
    """Answers for the noise sites of one flow."""

    def __init__(self, flow: Flow, ways: Ways | None = None) -> None:
        self._flow = flow
        self._ways = ways or Ways(flow)

    def branch(self, start: int) -> Branch | None:
        """The place of the node at which noise meets the signal, None outside the branch of a sum."""
        ways = self._ways
        if start not in ways.signal:
            return None
        before = ways.upstream([start])
        after = ways.downstream(start)
        for index, free in ways.meetings(start, after):
            common = ways.upstream(free) & before
            if not common:
                return None  # two signals that have nothing in common are no branch and its shortcut
            return self._within(start, index, max(common), free, after)
        return None

    def _within(
        self, start: int, join: int, fork: int, free: Iterable[int], after: set[int]
    ) -> Branch | None:
        ways = self._ways
        gated = [one for one in self._flow.nodes[join].inputs if one in after or one == start]
        from_fork = ways.downstream(fork)
        branch = (ways.upstream(gated) & from_fork) | {start}
        shortcut = ways.upstream(free) & from_fork
        mixing = {node.index for node in self._flow.nodes if node.kind == "weight"}
        weights, norms = branch & mixing, sorted(branch & ways.norms)
        if not norms or len(weights) <= len(shortcut & mixing):
            return None
        later = branch & after
        candidates = [weight for weight in sorted(weights & ways.weights, reverse=True) if weight > norms[-1]]

        def is_passed(weight: int) -> bool:
            return all(ways.passes([weight], [fork], end, branch) for end in gated)

        slot = next(filter(is_passed, candidates), None)
        if later & ways.norms:
            return Branch("before-norm", slot, join, len(norms))
        return Branch("slot" if later & weights else "after-weight", slot, join, len(norms))
