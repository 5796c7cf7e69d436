"""From passes through a network to a surrogate of it, and from the surrogate to answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from torch import Tensor

from varshift.flow import Flow

from ._clean_pass import CleanPass, Observed
from ._outcome import Key, Outcome, Watch
from ._recorder import Recorder
from ._surrogate import AtNorm, Rates, Surrogate
from ._train_pass import TrainPass

_INSTEAD = 0.2  # rate that is followed where the network's own is 0
_LOUDER = 3.0  # times the noise variance, for questions about higher rates


class _Follows(Protocol):
    train: Flow
    evaluation: Flow

    def follow(
        self,
        changed: Rates,
        watch: Watch | None = None,
        states: Sequence[str] = (),
        *,
        first: bool = False,
    ) -> Outcome: ...


class Answers:
    """What the passes would find at other rates.

    Passes are watched at several points: without noise, at the network's own rates where these are not 0,
    and, for questions about higher rates, with more noise.

    Args:
        session: Follows the network.
        base: What the passes found at the network's own rates.
    """

    def __init__(self, session: _Follows, base: Outcome) -> None:
        self.session, self.base = session, base
        sites = session.train.noises
        self.own = {place: site.rate for place, site in enumerate(sites) if site.rate is not None}
        self.noisy = {place: rate or _INSTEAD for place, rate in self.own.items()}
        self.points: list[tuple[Recorder, Recorder]] = []
        self.rates: list[Rates] = []  # at the points
        self.surrogate: Surrogate | None = None
        self.start: tuple[Mapping[Key, AtNorm], Mapping[Key, AtNorm]] = {}, {}

    def _prepare(self, rates: Sequence[Rates]) -> None:
        """Follows the network at the points that these questions need."""
        if not self.points:
            self._follow(dict.fromkeys(self.noisy, 0.0))
            self._follow(self.noisy)
        if self._louder(rates) and len(self.points) < 3:
            louder = {place: self._louder_rate(place, rate) for place, rate in self.noisy.items()}
            self._follow(louder)
        train, evaluation = zip(*self.points, strict=True)
        self.surrogate = Surrogate(
            (train[1].watched, [recorder.seen for recorder in train]),
            (evaluation[1].watched, [recorder.seen for recorder in evaluation]),
            self.rates,
        )
        # What the surrogate says of the network as it is, which is known.
        self.start = self.surrogate.ask([self.own])

    def _louder(self, rates: Sequence[Rates]) -> bool:
        """Whether any site would be noisier than at the second point."""
        return any(rate > 1.001 * self.noisy[place] for given in rates for place, rate in given.items())

    def _louder_rate(self, place: int, rate: float) -> float:
        site = self.session.train.noises[place]
        if site.kind in ("gaussian", "uniform"):
            return rate * _LOUDER**0.5
        return _LOUDER * rate / (1 - rate + _LOUDER * rate)

    def _follow(self, rates: Rates) -> None:
        second = len(self.points) == 1
        found: list[Recorder] = []

        def watch(state: str, run: TrainPass | CleanPass) -> None:
            touched: set[int] = set()
            if isinstance(run, CleanPass):
                touched = {
                    index
                    for index, (site, call) in run.norm_at.items()
                    if (made := run.anchors.get((site.name, call))) and bool((made.noise > 0).any())
                }
            found.append(Recorder(run, touched, matrices, responding=second))

        matrices: dict[str, tuple[Tensor, Tensor, int]] = {}
        first = second and self.noisy == self.own
        self.session.follow(rates, watch, ("eval",), first=first)
        self.points.append((found[0], found[1]))
        self.rates.append(rates)

    def ask(self, rates: Sequence[Rates]) -> list[Outcome]:
        """What the passes would find, for each of several sets of rates."""
        if len(self.points) < 2 + self._louder(rates):
            self._prepare(rates)
        assert self.surrogate is not None
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
