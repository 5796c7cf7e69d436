"""From passes through a network to a surrogate of it, and from the surrogate to answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from torch import Tensor

from varshift.flow import Flow

from ._clean_pass import CleanPass, Observed
from ._outcome import Key, Outcome, Watch
from ._recorder import Recorder
from ._surrogate import AtNorm, Rates, Surrogate
from ._train_pass import TrainPass

_INSTEAD = 0.2  # rate that is followed where the network's own is 0


class _Follows(Protocol):
    train: Flow
    evaluation: Flow

    def follow(
        self,
        tensors: Mapping[str, Tensor],
        inputs: Sequence[Tensor],
        changed: Rates,
        watch: Watch | None = None,
        states: Sequence[str] = (),
    ) -> Outcome: ...


class Answers:
    """What the passes would find at other rates.

    Two runs are watched: one with noise, at the network's own rates where these are not 0, and one without.

    Args:
        session: Follows the network.
        base: What the passes found at the network's own rates.
        tensors: Parameters and buffers by name.
        inputs: The inputs.
    """

    def __init__(
        self,
        session: _Follows,
        base: Outcome,
        tensors: Mapping[str, Tensor],
        inputs: Sequence[Tensor],
    ) -> None:
        self.base = base
        sites = session.train.noises
        self.own = {place: site.rate for place, site in enumerate(sites) if site.rate is not None}
        noisy = {place: rate or _INSTEAD for place, rate in self.own.items()}
        recorders: list[tuple[TrainPass | CleanPass, Recorder]] = []
        matrices: dict[str, Any] = {}

        def watch(state: str, run: TrainPass | CleanPass) -> None:
            touched = set()
            if isinstance(run, CleanPass):
                found = run.anchors
                touched = {
                    index
                    for index, (site, call) in run.norm_at.items()
                    if (site.name, call) in found and bool((found[site.name, call].noise > 0).any())
                }
            recorders.append((run, Recorder(run, touched, matrices, responding=len(recorders) < 2)))

        for rates in (noisy, dict.fromkeys(noisy, 0.0)):
            session.follow(tensors, inputs, rates, watch, ("eval",))
        (train, first), (evaluation, second), (_, third), (_, fourth) = recorders
        self.surrogate = Surrogate(
            (train, first.seen, third.seen), (evaluation, second.seen, fourth.seen), noisy
        )
        # What the surrogate says of the network as it is, which is known.
        self.start = self.surrogate.ask([self.own])

    def ask(self, rates: Sequence[Rates]) -> list[Outcome]:
        """What the passes would find, for each of several sets of rates."""
        found = self.surrogate.ask([{**self.own, **given} for given in rates])
        return [self._outcome(found, row) for row in range(len(rates))]

    def _outcome(self, found: tuple[Mapping[Key, AtNorm], Mapping[Key, AtNorm]], row: int) -> Outcome:
        learned, deployed = found
        anchors, seen = dict(self.base.anchors), dict(self.base.observed["eval"])
        for key, met in learned.items():
            start, old = self.start[0][key], anchors.get(key)
            if old is None:
                continue
            anchors[key] = replace(
                old,
                channels_mean=_like(old.channels_mean, met.input.mean, start.input.mean, row),
                variance=_like(old.variance, met.variance, start.variance, row, ratio=True),
                noise=_like(old.noise, met.input.noise, start.input.noise, row, ratio=True),
            )
        for key, met in deployed.items():
            start, old = self.start[1][key], seen.get(key)
            if old is None:
                continue
            seen[key] = Observed(
                _like(old.mean, met.input.mean, start.input.mean, row),
                _like(old.variance, met.input.data, start.input.data, row, ratio=True),
            )
        return replace(self.base, anchors=anchors, observed={**self.base.observed, "eval": seen})


def _like(known: Tensor, found: Tensor, start: Tensor, row: int, *, ratio: bool = False) -> Tensor:
    """A known figure, changed as the surrogate says that it changes."""
    new, old = found[min(row, len(found) - 1)], start[0]
    before = known.detach().double().cpu()
    if not ratio:
        return before + (new - old)
    return (before * new / old.clamp_min(1e-20)).where(old > 0, new)
