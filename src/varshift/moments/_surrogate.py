"""Answers for other rates from figures per channel, without another pass through the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from varshift.flow import NoiseSite
from varshift.theory import noise_variance

from ._interpreter import Interpreter
from ._noise import ALPHA, multiplies
from ._profile import Profile
from ._recorder import Place, Seen
from ._responses import Response, unchanged
from ._train_pass import TrainPass

Key = tuple[str, int]
Rates = Mapping[int, float]
_TINY = 1e-20
_LEAST, _MOST = -0.5, 2.0  # how far beyond the two rates that were followed a factor is carried on
_WORTH = 0.02  # share of the noise that is not fresh, above which it takes the blame for what is unexplained
_ELEMENTWISE = ("dropout", "gaussian", "uniform", "alpha_dropout")


class Calibrated:
    """A response with factors per channel such that it is right at the two points that were followed.

    Args:
        response: How the profile of the result follows from those of the operands.
        mixes: Whether it mixes units: what comes out is no longer independent.
        given: The operands, with the noise and without.
        results: The result, likewise.
    """

    def __init__(
        self,
        response: Response,
        mixes: bool,
        given: tuple[Sequence[Profile], Sequence[Profile]],
        results: tuple[Profile, Profile],
    ) -> None:
        self.response, self.mixes = response, mixes
        noisy, quiet = (response(operands) for operands in given)
        self.data = _log_ratio(results[0].data, noisy.data), _log_ratio(results[1].data, quiet.data)
        self.mean = results[0].mean - noisy.mean, results[1].mean - quiet.mean
        self.own, self.shared, self.rest = _noise_factors(noisy, results[0].noise, mixes)
        self.shares = _share(given[0]), _share(given[1])

    def __call__(self, given: Sequence[Profile], level: Tensor | None = None) -> Profile:
        level = _level(given, self.shares) if level is None else level
        made = self.response(given)
        mean = made.mean + level * self.mean[0] + (1 - level) * self.mean[1]
        data = made.data * (level * self.data[0] + (1 - level) * self.data[1]).exp()
        own, shared = made.own * self.own, made.shared * self.shared + self.rest
        if self.mixes:
            own, shared = torch.zeros_like(own), own + shared
        return Profile(mean, data, own, shared)


def _log_ratio(above: Tensor, below: Tensor) -> Tensor:
    tiny = 1e-9 * above.mean() + _TINY
    return ((above + tiny) / (below + tiny)).log()


def _share(profiles: Sequence[Profile]) -> Tensor:
    """Share of the noise in the variance, of all operands together."""
    noise, total = torch.zeros(1, dtype=torch.float64), torch.full((1,), _TINY, dtype=torch.float64)
    for profile in profiles:
        noise, total = noise + profile.noise.sum(-1), total + profile.total.sum(-1)
    return (noise / total)[:, None]


def _level(given: Sequence[Profile], shares: tuple[Tensor, Tensor]) -> Tensor:
    """How far profiles are from the point without noise: 1 at the point with it."""
    high, low = shares
    if float((high - low).abs()) < 1e-9:
        return torch.ones(1, 1, dtype=torch.float64)
    return ((_share(given) - low) / (high - low)).clamp(_LEAST, _MOST)


def _noise_factors(made: Profile, wanted: Tensor, mixes: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Factors on independent and on shared noise, and a term where there is no other noise to scale.

    Squared weights are exact for independent noise: what they leave unexplained is due to the shared noise.
    """
    sum_ = made.noise
    factor = torch.where(sum_ > _TINY, wanted / sum_.clamp_min(_TINY), torch.ones_like(sum_))
    rest = torch.where(sum_ > _TINY, torch.zeros_like(sum_), wanted)
    if not mixes:
        return factor, factor, rest
    left = wanted - made.own
    explains = (made.shared > _WORTH * wanted) & (left > 0.1 * made.shared) & (left < 10 * made.shared)
    own = torch.where(explains, torch.ones_like(factor), factor)
    shared = torch.where(explains, left / made.shared.clamp_min(_TINY), factor)
    return own, shared, rest


class NoiseStep:
    """A noise site at any rate.

    Args:
        site: The site.
        given: Its operand at `rate`.
        result: Its result at `rate`.
        rate: A rate above 0 that was followed.
    """

    def __init__(self, site: NoiseSite, given: Profile, result: Profile, rate: float) -> None:
        self.site, self.independent = site, site.kind in _ELEMENTWISE
        moved, fresh = self._moved(given, [rate])
        self.data = (result.data + _TINY) / (moved.data + _TINY)
        self.mean = result.mean - moved.mean * self.data.sqrt()
        left = result.noise - moved.noise * self.data
        self.fresh = torch.where(
            fresh > _TINY, left / fresh.clamp_min(_TINY), torch.ones_like(left)
        ).clamp_min(0)

    def __call__(self, given: Profile, rates: Sequence[float]) -> Profile:
        moved, fresh = self._moved(given, rates)
        fresh = fresh * self.fresh
        own, shared = moved.own * self.data, moved.shared * self.data
        own, shared = (own + fresh, shared) if self.independent else (own, shared + fresh)
        return Profile(moved.mean * self.data.sqrt() + self.mean, moved.data * self.data, own, shared)

    def _moved(self, x: Profile, rates: Sequence[float]) -> tuple[Profile, Tensor]:
        """What becomes of the operand, and the variance of the noise that is added to it."""
        kind, rate = self.site.kind, x.mean.new_tensor(rates)[:, None]
        second = x.total + x.mean.square()
        if kind in ("alpha_dropout", "feature_alpha_dropout"):
            keep = 1 - rate
            scale = (keep + ALPHA**2 * keep * rate).rsqrt()
            mean = scale * (keep * x.mean + rate * ALPHA) - scale * rate * ALPHA
            kept = (scale * keep).square()
            return x.scaled(kept).but(mean=mean), (scale * scale * keep * rate) * (
                second + ALPHA**2 - 2 * ALPHA * x.mean
            )
        if multiplies(self.site):
            strength = [noise_variance(kind, value) if value > 0 else 0.0 for value in rates]
            return x, x.mean.new_tensor(strength)[:, None] * second
        if self.site.additive:
            return x, rate.square().expand_as(second)
        return x, (rate / (1 - rate).clamp_min(1e-3)).expand_as(second)


@dataclass(slots=True)
class AtNorm:
    """What a norm meets at the rates that were asked about, one row each.

    Attributes:
        input: Its input, anchored.
        variance: Variance that it divides by.
        level: How much noise there is: 0 at the rates 0, 1 at those that were followed.
    """

    input: Profile
    variance: Tensor
    level: Tensor


class NormStep:
    """A norm: in training it divides by what it sees, in evaluation by what it has learned."""

    def __init__(self, noisy: Seen, quiet: Seen) -> None:
        assert noisy.norm is not None
        assert noisy.anchored is not None
        self.norm = noisy.norm
        anchored = noisy.anchored, quiet.anchored or noisy.anchored
        self.anchor = Calibrated(unchanged, False, (noisy.given[:1], quiet.given[:1]), anchored)
        self.shares = _share(anchored[:1]), _share(anchored[1:])
        variances = noisy.norm.variance, (quiet.norm or noisy.norm).variance
        self.size = tuple(
            _log_ratio(variance, x.total) for variance, x in zip(variances, anchored, strict=True)
        )

    def __call__(
        self, given: Profile, level: Tensor | None, learned: AtNorm | None
    ) -> tuple[Profile, AtNorm]:
        """Its result, and what it met.

        Args:
            given: Its input.
            level: How much noise there is; None to find out from the input.
            learned: What it met in training; None in training itself.
        """
        x = self.anchor([given], level)
        if learned is None:
            share = _level([x], self.shares)
            size = (share * self.size[0] + (1 - share) * self.size[1]).exp()
            found, centre = AtNorm(x, x.total * size, share), x.mean
        else:
            found = AtNorm(x, learned.variance, learned.level)
            centre = learned.input.mean
        scale = self.norm.weight * (found.variance + self.norm.eps).rsqrt()
        return x.scaled(scale.square()).but(mean=(x.mean - centre) * scale + self.norm.bias), found


class Replay:
    """One pass, replayed on profiles.

    Args:
        run: The pass.
        noisy: What was seen of it with noise.
        quiet: What was seen of it without.
        rates: The rates that were followed, by noise site.
    """

    def __init__(
        self, run: Interpreter, noisy: Mapping[int, Seen], quiet: Mapping[int, Seen], rates: Rates
    ) -> None:
        self.seen = noisy
        self.sites = {}
        self.norms: dict[int, NormStep] = {}
        self.steps: dict[int, list[Calibrated | None]] = {}
        for index, seen in noisy.items():
            if not seen.responses:
                continue
            other = quiet.get(index, seen)
            if len(other.given) != len(seen.given) or len(other.results) != len(seen.results):
                other = seen
            first = seen.results[0]
            if isinstance(run, TrainPass) and index in run.sites and first is not None:
                place, site = run.sites[index]
                if place in rates:
                    self.sites[index] = (place, NoiseStep(site, seen.given[0], first, rates[place]))
                    continue
            if seen.norm is not None:
                self.norms[index] = NormStep(seen, other)
                continue
            self.steps[index] = [
                Calibrated(response, seen.mixes, (seen.given, other.given), (result, quiet_result or result))
                if result is not None
                else None
                for response, result, quiet_result in zip(
                    seen.responses, seen.results, other.results, strict=True
                )
            ]

    def run(self, rates: Sequence[Rates], learned: Mapping[Key, AtNorm] | None = None) -> dict[Key, AtNorm]:
        """What every norm meets, one row per set of rates.

        Args:
            rates: Sets of rates.
            learned: What every norm met in training; None in training itself.
        """
        values: dict[Place, Profile] = {}
        levels: dict[Place, Tensor] = {}
        found: dict[Key, AtNorm] = {}
        for index, seen in self.seen.items():
            level = _together([levels[place] for place in seen.places if place in levels])
            results: Sequence[Profile | None] = seen.results
            if not seen.responses:
                level = None
                if seen.anchored is not None:
                    values[seen.places[0]] = seen.anchored
            elif index in self.sites:
                place, step = self.sites[index]
                results = [step(values[seen.places[0]], [given[place] for given in rates])]
            elif index in self.norms:
                step = self.norms[index]
                key = step.norm.key
                result, met = step(
                    values[seen.places[0]], level, None if learned is None else learned.get(key, _own(seen))
                )
                values[seen.places[0]], found[key], results = met.input, met, [result]
                level = met.level
            else:
                given = [values[place] for place in seen.places]
                results = [step and step(given, level) for step in self.steps[index]]
            for part, result in enumerate(results):
                for target in {index, seen.overwrites} - {None}:
                    if result is not None:
                        values[target, part] = result
                        if learned is not None and level is not None:
                            levels[target, part] = level
        return found


def _together(levels: Sequence[Tensor]) -> Tensor | None:
    return torch.stack(torch.broadcast_tensors(*levels)).mean(0) if levels else None


def _own(seen: Seen) -> AtNorm:
    """A norm that training says nothing of goes on with what it was seen with."""
    assert seen.norm is not None
    assert seen.anchored is not None
    everything = torch.ones(1, 1, dtype=torch.float64)
    return AtNorm(seen.anchored.but(mean=seen.norm.mean), seen.norm.variance, everything)


class Surrogate:
    """The pass in training and the one in evaluation, replayed on profiles.

    Args:
        train: The network in training, and what was seen of it with noise and without.
        evaluation: The network in evaluation, with the statistics of the one and of the other.
        rates: The rates that were followed, all above 0, by noise site.
    """

    def __init__(
        self,
        train: tuple[Interpreter, Mapping[int, Seen], Mapping[int, Seen]],
        evaluation: tuple[Interpreter, Mapping[int, Seen], Mapping[int, Seen]],
        rates: Rates,
    ) -> None:
        self.rates = dict(rates)
        self.train = Replay(*train, rates)
        self.evaluation = Replay(*evaluation, {})

    def ask(self, rates: Sequence[Rates]) -> tuple[dict[Key, AtNorm], dict[Key, AtNorm]]:
        """What every norm meets in training and in evaluation, one row for each set of rates."""
        learned = self.train.run([{**self.rates, **given} for given in rates])
        return learned, self.evaluation.run(rates, learned)
