"""A network whose weights follow those of one that trains: what its statistics do meanwhile."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from torch import nn
from torch.optim import Optimizer

from varshift.evidence import Evidence
from varshift.model import Norm, counterpart_norm, counterparts, norm_facts
from varshift.monitor._statistics import Statistics
from varshift.monitor._weights import Weights
from varshift.probe import compare_networks


class Follower:
    """A moving average, a target network, a teacher, read next to the network that trains.

    Its buffers are read where its weights have moved: they are copies where they equal the statistics that
    the other network has now or had at the reading before, between which the average was taken; they were
    left behind where they are still what they were when the watch began. Nothing of it is written.

    Args:
        network: It.
        source: The network that trains.
        statistics: The statistics of the norms of `source`, read after its steps.
        name: How to call it.

    Attributes:
        moves: Readings at which its weights were others than before.
        told: Whether it was said that its statistics were left behind.
    """

    def __init__(self, network: nn.Module, source: nn.Module, statistics: Statistics, name: str) -> None:
        self.network, self.name = network, name
        self._source, self._theirs = source, statistics
        pairs = counterparts(source, network)
        self._norms: list[tuple[int, Norm]] = [
            (number, own)
            for number, norm in enumerate(statistics.norms)
            if (own := counterpart_norm(norm, pairs, network)) is not None
            and own.readable
            and own.size == norm.size
        ]
        self._own = Statistics([own for _, own in self._norms])
        self._own.read()
        self._weights = Weights(network, every_parameter=True)
        self._their_weights = Weights(source, every_parameter=True)
        self._digests = (0, self._their_weights.digest())
        self._began = self._values(self._own)
        self._they_began = self._values(self._theirs)
        self._copied = [False] * len(self._norms)
        self._checked: list[np.ndarray] = []
        self._moved = False
        self.moves = 0
        self.told = False

    def see(self) -> None:
        """Takes note of a reading of the network that trains."""
        self._digests = (self._digests[1], self._their_weights.digest())
        moved = self._weights.moved()
        self.moves += moved
        # One that moves at every reading is looked at when somebody asks: its statistics are of now.
        if moved and not self._moved:
            self._own.read()
            self._copied = self._copies()
            self._checked = self._values(self._own)
        self._moved = moved

    @property
    def left_behind(self) -> bool:
        """Whether its statistics are what they were when the watch began, and those that it follows not."""
        self._own.read()
        return any(self._left())

    def evidence(self) -> Evidence | None:
        """It as the network of which evidence is about; None where it does not follow, or is a mere copy."""
        if self.moves < 2:
            return None
        self._own.read()
        if self._weights.digest() in self._digests:
            return None
        norms = [own for _, own in self._norms]
        compared = compare_networks(self.network, norms, [self._source])
        values, now = self._values(self._own), self._copies()
        facts = {}
        changed = dict(compared.norms)
        for place, ((_, own), left) in enumerate(zip(self._norms, self._left(), strict=True)):
            learns = not np.array_equal(self._part(self._theirs, place), self._they_began[place])
            facts[own.name] = norm_facts(own, live=learns)
            still = bool(self._checked) and np.array_equal(values[place], self._checked[place])
            copied = now[place] or (still and self._copied[place])
            if own.name in changed:
                equal = (0,) if copied else ()
                changed[own.name] = replace(changed[own.name], equal=equal, left=left and not copied)
        references = replace(compared, norms=changed, subject=self.name)
        return Evidence(norms=facts, references=references)

    def _copies(self) -> list[bool]:
        """Of each norm, whether its statistics are the trained network's of now or of the reading before."""
        if self._weights.digest() in self._digests:
            return [False] * len(self._norms)  # the weights are, too: a copy of the whole network
        before = self._values(self._theirs, before=True)
        return [
            np.array_equal(own, self._part(self._theirs, place)) or np.array_equal(own, before[place])
            for place, own in enumerate(self._values(self._own))
        ]

    def _left(self) -> list[bool]:
        if not self.moves:
            return [False] * len(self._norms)
        return [
            np.array_equal(own, self._began[place])
            and not np.array_equal(self._part(self._theirs, place), self._they_began[place])
            for place, own in enumerate(self._values(self._own))
        ]

    def _values(self, statistics: Statistics, *, before: bool = False) -> list[np.ndarray]:
        return [self._part(statistics, place, before=before) for place in range(len(self._norms))]

    def _part(self, statistics: Statistics, place: int, *, before: bool = False) -> np.ndarray:
        number = place if statistics is self._own else self._norms[place][0]
        start = int(statistics.starts[number])
        part = slice(start, start + statistics.norms[number].size)
        means, variances = statistics.both()[2:] if before else statistics.both()[:2]
        return np.concatenate([means[part], variances[part]])


def trains(network: nn.Module, optimizer: Optimizer | None) -> bool:
    """Whether a network is one that an optimiser trains, or has gradients where none is known."""
    parameters: Iterable[nn.Parameter] = network.parameters()
    if optimizer is None:
        return any(p.requires_grad and p.grad is not None for p in parameters)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return any(id(p) in held for p in parameters)
