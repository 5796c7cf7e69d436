"""Answers for other rates from figures per channel, without another pass through the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from varshift.flow import NoiseSite
from varshift.theory import noise_variance

from ._interpreter import Interpreter
from ._noise import ALPHA, multiplies
from ._profile import Profile, joined
from ._recorder import Norm, Place, Seen
from ._responses import Response, unchanged
from ._train_pass import TrainPass

Key = tuple[str, int]
Rates = Mapping[int, float]
_TINY = 1e-20
_LEAST, _MOST = -0.5, 2.0  # how far beyond the points that were followed a factor is carried on
_LEAST_STEP = 1e-9  # between the shares of two points
_FACTORS = (1e-3, 1e3)  # that variances may be scaled with
_WORTH = 0.02  # share of the noise that is not fresh, above which it takes the blame for what is unexplained
_ELEMENTWISE = ("dropout", "gaussian", "uniform", "alpha_dropout")


class Calibrated:
    """A response with factors per channel such that it is right at the points that were followed.

    Args:
        response: How the profile of the result follows from those of the operands.
        mixes: Whether it mixes units: what comes out is no longer independent.
        given: The operands, one row for every point, from no noise to most.
        result: The result, likewise.
    """

    def __init__(self, response: Response, mixes: bool, given: Sequence[Profile], result: Profile) -> None:
        self.response, self.mixes = response, mixes
        made = response(given)
        factors = [result.data / made.data.clamp_min(_TINY)]
        self.rest = None
        if not made.quiet:
            own, shared, rest = _noise_factors(made, result.noise, mixes)
            # Without noise there is nothing to scale.
            factors += [torch.cat([factor[1:2], factor[1:]]) for factor in (own, shared)]
            self.rest = rest if bool(rest.any()) else None
        self.factors = torch.stack(factors).clamp(*_FACTORS).log()
        self.mean = result.mean - made.mean
        self.shares = share_of(given)
        self.at_points = self(given, torch.eye(len(self.shares), dtype=torch.float64))

    def __call__(self, given: Sequence[Profile], near: Tensor | None = None) -> Profile:
        near = nearness(share_of(given), self.shares) if near is None else near
        made = self.response(given)
        variances = made.variances * (near @ self.factors).exp()
        if not made.quiet and (self.mixes or self.rest is not None):
            data, own, shared = variances
            if self.rest is not None:
                shared = shared + near @ self.rest
            if self.mixes:
                own, shared = torch.zeros_like(own), own + shared
            variances = torch.stack([data, own, shared])
        return Profile(made.mean + near @ self.mean, variances)


def share_of(profiles: Sequence[Profile]) -> Tensor:
    """Share of the noise in the variance, of all operands together, one number per row."""
    sums = profiles[0].variances.sum(-1)
    for profile in profiles[1:]:
        sums = sums + profile.variances.sum(-1)
    return sums[1:].sum(0) / sums.sum(0).clamp_min(_TINY)


def nearness(level: Tensor, points: Tensor) -> Tensor:
    """Weights of the points that were followed, by the level of the noise: linear between neighbours.

    Args:
        level: How much noise there is, one number per row.
        points: The same at the points, which go up.

    Returns:
        One row of weights that add up to 1 for each row of `level`.
    """
    at, rows = points.tolist(), []
    for value in level.tolist():  # few: as tensors they would cost more than what is done with them
        lower = 0
        for place in range(1, len(at) - 1):
            if value > at[place] and at[place + 1] - at[place] > _LEAST_STEP:
                lower = place
        apart = at[lower + 1] - at[lower]
        along = (value - at[lower]) / apart if apart > _LEAST_STEP else 1.0
        along = min(max(along, _LEAST), _MOST)
        row = [0.0] * len(at)
        row[lower], row[lower + 1] = 1 - along, along
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float64)


def _log_ratio(above: Tensor, below: Tensor) -> Tensor:
    tiny = 1e-9 * above.mean(-1, keepdim=True) + _TINY
    return ((above + tiny) / (below + tiny)).log()


def _noise_factors(made: Profile, wanted: Tensor, mixes: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Factors on independent and on shared noise, and a term where there is no other noise to scale.

    Squared weights are exact for independent noise: what they leave unexplained is due to the shared noise.
    """
    noise = made.noise
    some = noise > 1e-9 * made.total.mean() + _TINY
    factor = torch.where(some, wanted / noise.clamp_min(_TINY), torch.ones_like(noise))
    rest = torch.where(some, torch.zeros_like(noise), wanted)
    if not mixes:
        return factor, factor, rest
    left = wanted - made.own
    explains = (made.shared > _WORTH * wanted) & (left > 0.1 * made.shared) & (left < 10 * made.shared)
    explains &= some
    own = torch.where(explains, torch.ones_like(factor), factor)
    shared = torch.where(explains, left / made.shared.clamp_min(_TINY), factor)
    return own, shared, rest


class NoiseStep:
    """A noise site at any rate.

    Args:
        site: The site.
        given: Its operand, one row for every point.
        result: Its result, likewise.
        rates: Its rates at the points.
    """

    def __init__(self, site: NoiseSite, given: Profile, result: Profile, rates: Sequence[float]) -> None:
        self.site, self.independent = site, site.kind in _ELEMENTWISE
        moved, fresh = self._moved(given, rates)
        self.data = (result.data + _TINY) / (moved.data + _TINY)
        self.mean = result.mean - moved.mean * self.data.sqrt()
        left = (result.noise - moved.noise * self.data).clamp_min(0)
        left = torch.where(fresh > _TINY, left / fresh.clamp_min(_TINY), torch.ones_like(left))
        self.fresh = torch.cat([left[1:2], left[1:]])
        self.points = given.mean.new_tensor(rates)
        self.at_points = self(given, rates)

    def __call__(self, given: Profile, rates: Sequence[float]) -> Profile:
        near = nearness(given.mean.new_tensor(rates), self.points)
        moved, fresh = self._moved(given, rates)
        factor, fresh = near @ self.data, fresh * (near @ self.fresh).clamp_min(0)
        data, own, shared = moved.variances * factor
        own, shared = (own + fresh, shared) if self.independent else (own, shared + fresh)
        return Profile.of(moved.mean * factor.sqrt() + near @ self.mean, data, own, shared)

    def _moved(self, x: Profile, rates: Sequence[float]) -> tuple[Profile, Tensor]:
        """What becomes of the operand, and the variance of the noise that is added to it."""
        kind, rate = self.site.kind, x.mean.new_tensor(rates)[:, None]
        second = x.total + x.mean.square()
        if kind in ("alpha_dropout", "feature_alpha_dropout"):
            keep = 1 - rate
            scale = (keep + ALPHA**2 * keep * rate).rsqrt()
            mean = scale * (keep * x.mean + rate * ALPHA) - scale * rate * ALPHA
            fresh = scale.square() * keep * rate * (second + ALPHA**2 - 2 * ALPHA * x.mean)
            return x.scaled((scale * keep).square(), mean), fresh
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
        near: Weights of the points that were followed.
    """

    input: Profile
    variance: Tensor
    near: Tensor


class NormStep:
    """A norm: in training it divides by what it sees, in evaluation by what it has learned.

    Args:
        norms: The norm as it was seen at every point.
        given: Its input, one row for every point.
        anchored: Its input once it was put right, likewise.
    """

    def __init__(self, norms: Sequence[Norm], given: Profile, anchored: Profile) -> None:
        self.norm = norms[1]
        self.anchor = Calibrated(unchanged, False, [given], anchored)
        x = self.input_at_points = self.anchor.at_points
        variances = torch.cat([norm.variance for norm in norms])
        self.shares, self.size = share_of([x]), _log_ratio(variances, x.total)
        self.at_points = self._divided(x, torch.cat([norm.mean for norm in norms]), variances)

    def __call__(self, given: Profile, near: Tensor | None, learned: AtNorm | None) -> tuple[Profile, AtNorm]:
        """Its result, and what it met.

        Args:
            given: Its input.
            near: Weights of the points that were followed; None to find them out from the input.
            learned: What it met in training; None in training itself.
        """
        x = self.anchor([given], near)
        if learned is None:
            near = nearness(share_of([x]), self.shares)
            found, centre = AtNorm(x, x.total * (near @ self.size).exp(), near), x.mean
        else:
            found, centre = AtNorm(x, learned.variance, learned.near), learned.input.mean
        return self._divided(x, centre, found.variance), found

    def _divided(self, x: Profile, centre: Tensor, variance: Tensor) -> Profile:
        scale = self.norm.weight * (variance + self.norm.eps).rsqrt()
        return x.scaled(scale.square(), (x.mean - centre) * scale + self.norm.bias)


class Replay:
    """One pass, replayed on profiles.

    Args:
        run: The pass.
        points: What was seen of it at every point, from no noise to most; the second decides how results
            follow from operands.
        rates: Rates of the noise sites at every point; none for a pass without noise.
    """

    def __init__(
        self, run: Interpreter, points: Sequence[Mapping[int, Seen]], rates: Sequence[Rates]
    ) -> None:
        self.seen, self.points = points[1], len(points)
        self.sites: dict[int, tuple[int, NoiseStep]] = {}
        self.norms: dict[int, NormStep] = {}
        self.steps: dict[int, list[Calibrated | None]] = {}
        sites = run.sites if isinstance(run, TrainPass) else {}
        values: dict[Place, Profile] = {}  # one row for every point
        for index, seen in self.seen.items():
            at = [_matching(point.get(index), seen) for point in points]
            results = [_rows(profiles) for profiles in zip(*(each.results for each in at), strict=True)]
            given = [values[place] for place in seen.places]
            anchored = _rows([each.anchored for each in at])
            if anchored is not None:
                values[seen.places[0]] = anchored
            if not seen.responses:
                pass
            elif index in sites and sites[index][0] in rates[1] and results[0] is not None:
                place, site = sites[index]
                step = NoiseStep(site, given[0], results[0], [each[place] for each in rates])
                self.sites[index], results = (place, step), [step.at_points]
            elif anchored is not None:
                step = NormStep([each.norm for each in at if each.norm is not None], given[0], anchored)
                self.norms[index], results = step, [step.at_points]
                values[seen.places[0]] = step.input_at_points
            else:
                pairs = zip(seen.responses, results, strict=True)
                steps = [
                    result and Calibrated(response, seen.mixes, given, result) for response, result in pairs
                ]
                self.steps[index], results = steps, [step and step.at_points for step in steps]
            values.update(_written(index, seen, results))

    def run(self, rates: Sequence[Rates], learned: Mapping[Key, AtNorm] | None = None) -> dict[Key, AtNorm]:
        """What every norm meets, one row per set of rates.

        Args:
            rates: Sets of rates.
            learned: What every norm met in training; None in training itself.
        """
        values: dict[Place, Profile] = {}
        nearby: dict[Place, Tensor] = {}
        found: dict[Key, AtNorm] = {}
        for index, seen in self.seen.items():
            near = _together([nearby[place] for place in seen.places if place in nearby])
            results: Sequence[Profile | None] = seen.results
            if not seen.responses:
                near = None
                if seen.anchored is not None:
                    values[seen.places[0]] = seen.anchored
            elif index in self.sites:
                place, step = self.sites[index]
                results = [step(values[seen.places[0]], [given[place] for given in rates])]
            elif index in self.norms:
                step, source = self.norms[index], seen.places[0]
                met = None if learned is None else learned.get(step.norm.key, _own(seen, self.points))
                result, met = step(values[source], near, met)
                values[source], found[step.norm.key], results, near = met.input, met, [result], met.near
            else:
                given = [values[place] for place in seen.places]
                results = [step and step(given, near) for step in self.steps[index]]
            for place, result in _written(index, seen, results):
                values[place] = result
                if learned is not None and near is not None:
                    nearby[place] = near
        return found


def _matching(found: Seen | None, seen: Seen) -> Seen:
    """A call as it was seen at another point; as it was seen here where the two do not correspond."""
    if found is None or len(found.given) != len(seen.given) or len(found.results) != len(seen.results):
        return seen
    return seen if seen.norm and not (found.norm and found.anchored) else found


def _rows(profiles: Sequence[Profile | None]) -> Profile | None:
    known = [profile for profile in profiles if profile is not None]
    if len(known) < len(profiles):
        return None
    return joined(known, -2)


def _written(index: int, seen: Seen, results: Sequence[Profile | None]) -> list[tuple[Place, Profile]]:
    """Where results are kept: for an operation that overwrites its operand, also in the place of that."""
    targets = [index] if seen.overwrites is None else [index, seen.overwrites]
    parts = [(part, result) for part, result in enumerate(results) if result is not None]
    return [((target, part), result) for target in targets for part, result in parts]


def _together(weights: Sequence[Tensor]) -> Tensor | None:
    return torch.stack(torch.broadcast_tensors(*weights)).mean(0) if weights else None


def _own(seen: Seen, points: int) -> AtNorm:
    """A norm that training says nothing of goes on with what it was seen with."""
    assert seen.norm is not None
    assert seen.anchored is not None
    near = torch.eye(points, dtype=torch.float64)[1:2]
    return AtNorm(replace(seen.anchored, mean=seen.norm.mean), seen.norm.variance, near)


class Surrogate:
    """The pass in training and the one in evaluation, replayed on profiles.

    Args:
        train: The network in training, and what was seen of it at every point, from no noise to most.
        evaluation: The network in evaluation with the statistics of these points, likewise.
        rates: The rates at the points, by noise site.
    """

    def __init__(
        self,
        train: tuple[Interpreter, Sequence[Mapping[int, Seen]]],
        evaluation: tuple[Interpreter, Sequence[Mapping[int, Seen]]],
        rates: Sequence[Rates],
    ) -> None:
        self.train = Replay(*train, rates)
        self.evaluation = Replay(*evaluation, [{}] * len(rates))

    def ask(self, rates: Sequence[Rates]) -> tuple[dict[Key, AtNorm], dict[Key, AtNorm]]:
        """What every norm meets in training and in evaluation, one row for each set of rates of all sites."""
        learned = self.train.run(rates)
        return learned, self.evaluation.run(rates, learned)
