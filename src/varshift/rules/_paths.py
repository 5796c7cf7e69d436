"""What lies between a noise site and a norm, and what the closed forms predict for it."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from varshift import theory

if TYPE_CHECKING:
    from varshift.flow import Flow, Node, NoiseSite

# Noise whose factor has mean 1 and is independent of the signal: the closed forms hold as they stand. Drop
# block rescales by the share that happened to survive in the batch, so its nominal rate is no promise.
_CLOSED_FORM = ("dropout", "channel_dropout", "drop_path", "gaussian", "uniform")

_FIXED = ("parameter", "buffer", "constant")


def noise_delta(site: NoiseSite) -> float | None:
    """The most that ``Var_eval / Var_train`` can be where this noise feeds a norm directly.

    Multiplicative noise with mean 1 and variance s2 turns a variance v and a mean c into
    ``v + s2 (v + c**2)``: the ratio is ``1 / (1 + s2)`` for inputs without a mean, and smaller with one.
    None where the noise is of another kind, its rate is not known, or it is added to the signal.
    """
    if site.kind not in _CLOSED_FORM or site.rate is None or site.additive:
        return None
    try:
        return theory.noise_delta(theory.noise_variance(site.kind, site.rate))
    except ValueError:  # a rate that this kind cannot have, such as a drop probability of 1
        return None


def readers_of(flow: Flow) -> dict[int, list[int]]:
    """The nodes that read the value of each node, in order of execution."""
    readers: dict[int, list[int]] = defaultdict(list)
    for node in flow.nodes:
        for index in node.inputs:
            readers[index].append(node.index)
    return readers


class Between:
    """Finds the operations between a noise site and a norm in one flow."""

    def __init__(self, flow: Flow) -> None:
        self._flow = flow
        self._readers = readers_of(flow)
        self._fixed: set[int] = set()  # what owes nothing to the input or to chance
        for node in flow.nodes:
            derived = bool(node.inputs) and all(index in self._fixed for index in node.inputs)
            if node.kind in _FIXED or (derived and node.kind not in ("random", "noise")):
                self._fixed.add(node.index)
        self._calls = {norm.name: set(norm.calls) for norm in flow.norms}
        self._all_calls = {call for calls in self._calls.values() for call in calls}

    def nodes(self, site: NoiseSite, norm: str) -> tuple[Node, ...] | None:
        """All operations on the ways from the noise to the norm that pass no other norm; None if unknown."""
        targets = self._calls.get(norm, set())
        if not 0 <= site.node < len(self._flow.nodes) or not targets:
            return None
        forward = self._forward(site.node)
        if not forward & targets:
            return None
        backward = set(targets)
        # Nodes are in topological order: one pass from the end finds all that lead to the norm.
        for index in sorted(forward - self._all_calls, reverse=True):
            if any(reader in backward for reader in self._readers[index]):
                backward.add(index)
        inside = (forward & backward) - targets - {site.node}
        return tuple(self._flow.nodes[index] for index in sorted(inside))

    def _forward(self, start: int) -> set[int]:
        seen = {start}
        stack = [start]
        while stack:
            index = stack.pop()
            if index in self._all_calls and index != start:
                continue
            fresh = [reader for reader in self._readers[index] if reader not in seen]
            seen.update(fresh)
            stack.extend(fresh)
        return seen

    def keeps_the_factor(self, site: NoiseSite, norm: str) -> bool:
        """Whether the noise's factor arrives at the norm as it left: only then does the closed form bind.

        A concatenation or a pooling mixes noisy values with others, an activation that is not homogeneous
        changes the factor, and of an operation that is not known nothing can be said.
        """
        nodes = self.nodes(site, norm)
        if nodes is None:
            return False
        steps = [self._step(node) for node in nodes]
        bends, terms = "activation" in steps, "term" in steps
        # Behind a bias even a ReLU is not homogeneous, and a Gaussian factor can be negative.
        return "unknown" not in steps and not (bends and (terms or site.kind == "gaussian"))

    def _step(self, node: Node) -> str:
        if node.kind == "view":
            return "view"
        if node.kind == "activation" and node.has("homogeneous"):
            return "activation"
        if sum(index not in self._fixed for index in node.inputs) > 1 or not node.inputs:
            return "unknown"
        if node.has("scale") and not (node.has("quotient") and node.inputs[0] in self._fixed):
            return "scale"  # a quotient only where the signal is divided
        return "term" if node.has("term") else "unknown"
