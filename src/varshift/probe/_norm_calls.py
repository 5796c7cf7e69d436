"""The moments of every call of a norm: several calls in one forward, configurations, kinds of batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from varshift.flow import Flow, RecognisedNorms
from varshift.model import Call, Forward, Norm, Shadow, seed_all
from varshift.probe._kernels import arranged
from varshift.probe._pass import run_pass
from varshift.probe._quiet import Quiet
from varshift.probe._states import live_norms, measurable_norms, set_noise
from varshift.probe._tap import Tap

_SAMPLES = 32  # of a batch
_FEW_BATCHES, _LEAST_BATCHES = 8, 4  # for what each call of a norm sees
_BATCHES = 12  # for what kinds of batches there are
_DRAWS = 6  # runs of one batch: a configuration of probability 1/4 is missed once in six


@dataclass(frozen=True, slots=True)
class Distributions:
    """How far several distributions at one norm are from one another.

    Attributes:
        count: Number of distributions.
        variances: Channel mean of the variance of each.
        ratio: Largest of them over the smallest; infinite where one is zero.
        offset: Root mean square over channels of the distance of their means from the common one, in standard
            deviations of all values, for the one that is farthest off.
        consistency: How far they are from their mean, in standard errors over batches; None where that was
            not measured.
    """

    count: int
    variances: tuple[float, ...]
    ratio: float
    offset: float
    consistency: float | None = None


@dataclass(frozen=True, slots=True)
class NormCalls:
    """What distributions one norm is fed with when the network trains, its noise off.

    Attributes:
        name: Name of the norm.
        calls: Its calls in one forward; None for a norm that is called once.
        configurations: The same batch in several forwards that differ by chance (widths, skipped layers);
            None where all are alike.
        batches: Groups of batches that differ far more from one another than within; None without such.
    """

    name: str
    calls: Distributions | None = None
    configurations: Distributions | None = None
    batches: Distributions | None = None


@dataclass(frozen=True, slots=True)
class _Moments:
    count: int
    mean: Tensor
    var: Tensor


class _CallTap(Tap):
    """Notes the moments of every call of a norm that learns."""

    def __init__(self, norms: Sequence[Norm], live: frozenset[str]) -> None:
        super().__init__(norms, "batch", live=live, record=False)
        self.heard: dict[str, list[_Moments]] = {}

    def _note(self, norm: Norm, x: Tensor) -> int:
        count = super()._note(norm, x)
        if count > 1 and norm.rows == 1 and norm.name in self.live and x.dim() > 1 and not norm.per_sample:
            values = x.detach().movedim(1, 0).flatten(1).double()
            var, mean = torch.var_mean(values, 1, correction=0)
            self.heard.setdefault(norm.name, []).append(_Moments(count, mean.cpu(), var.cpu()))
        return count

    def _read(self, visit: object, signal: Tensor) -> None:
        super()._read(visit, signal)  # type: ignore[arg-type]
        norm: Norm = visit.norm  # type: ignore[attr-defined]
        if norm.rows == 1 and (x := arranged(signal, norm)) is not None:
            self._note(norm, x)


def hear_norm_calls(
    shadow: Shadow,
    calls: Sequence[Call],
    recognised: RecognisedNorms,
    flow: Flow,
    *,
    forward: Forward | None = None,
    seed: int = 0,
    by_batch: bool = False,
) -> tuple[NormCalls, ...]:
    """Runs some batches in train mode without noise and takes the moments of every call of every norm.

    Nothing runs for a network whose norms are called once each and that runs the same every time.

    Args:
        shadow: Stands in for the network; it is reset.
        calls: The batches that were drawn.
        recognised: The norms written by hand, as a capture recognised them.
        flow: The network as captured in train mode.
        forward: The user's function of model and batch, if any.
        seed: Seed of what is random.
        by_batch: Whether to look for groups of batches.
    """
    shared = {site.name for site in flow.norms if len(site.calls) > 1}
    if not (shared or flow.by_chance or by_batch):
        return ()
    shadow.run_eagerly(forward)
    norms = measurable_norms(shadow.network, recognised)
    live, by_hand = live_norms(shadow, norms, forward, calls[0], as_passed=True)
    hearing = _Hearing(shadow, norms, live, by_hand, forward, flow)
    count = _BATCHES if by_batch else _FEW_BATCHES if shared else 1
    batches = [hearing.run(call, seed) for call in calls[:count]]
    draws = [hearing.run(calls[0], seed + number) for number in range(1, _DRAWS)] if flow.by_chance else []
    found = []
    for norm in norms:
        by_norm = [heard.get(norm.name, []) for heard in batches]
        drawn = [heard.get(norm.name, []) for heard in (batches[0], *draws)]
        called, configured = _calls(by_norm), _configurations(drawn, noisy=bool(flow.noises))
        kinds = None if called or configured or not by_batch else _kinds(by_norm)
        if called or configured or kinds:
            found.append(NormCalls(norm.name, called, configured, kinds))
    return tuple(found)


class _Hearing:
    def __init__(
        self,
        shadow: Shadow,
        norms: Sequence[Norm],
        live: frozenset[str],
        by_hand: frozenset[str],
        forward: Forward | None,
        flow: Flow,
    ) -> None:
        self._shadow, self._norms, self._live = shadow, norms, live
        self._by_hand, self._forward, self._flow = by_hand, forward, flow

    def run(self, call: Call, seed: int) -> dict[str, list[_Moments]]:
        """The moments of the calls of each norm in one forward."""
        network: nn.Module = self._shadow.fresh()
        set_noise(network, self._norms, True, self._by_hand, as_passed=True)
        seed_all(seed)
        tap = _CallTap(self._norms, self._live)
        try:
            with Quiet(network, self._flow):
                run_pass(network, self._forward, (call.take(_SAMPLES) or call).copy(), tap)
        finally:
            self._shadow.fresh()
        return tap.heard


def _calls(batches: Sequence[Sequence[_Moments]]) -> Distributions | None:
    """The calls of one forward, each over all batches."""
    count = min((len(one) for one in batches), default=0)
    if count < 2:
        return None
    consistency = _consistency([one[:count] for one in batches])
    return _spread([_pooled([one[place] for one in batches]) for place in range(count)], consistency)


def _consistency(batches: Sequence[Sequence[_Moments]]) -> float | None:
    """How far the calls are from their mean, in standard errors over batches: 1 is chance."""
    if len(batches) < _LEAST_BATCHES:
        return None
    largest = 0.0
    for read in (lambda one: one.mean, lambda one: one.var.clamp_min(1e-12).log()):
        values = torch.stack([torch.stack([read(call) for call in one]) for one in batches])
        values = values - values.mean(1, keepdim=True)
        error = values.std(0).clamp_min(1e-9) / len(batches) ** 0.5
        largest = max(largest, float((values.mean(0) / error).square().mean().sqrt()))
    return largest


def _configurations(draws: Sequence[Sequence[_Moments]], *, noisy: bool) -> Distributions | None:
    """Forwards of one batch that differ by chance; several that are alike, unless nothing else is random."""
    pooled = [_pooled(one) for one in draws if one]
    kinds: list[_Moments] = []
    for one in pooled:
        if not any(_alike(one, other) for other in kinds):
            kinds.append(one)
    if len(kinds) < 2 or (noisy and len(kinds) == len(pooled)):
        return None
    return _spread(kinds)


def _alike(one: _Moments, other: _Moments) -> bool:
    return torch.allclose(one.mean, other.mean, 1e-3, 1e-5) and torch.allclose(one.var, other.var, 1e-3, 1e-5)


def _kinds(batches: Sequence[Sequence[_Moments]]) -> Distributions | None:
    """Two groups of batches, far from one another as measured by how far batches are within each."""
    pooled = [_pooled(one) for one in batches if one]
    if len(pooled) < 8:
        return None
    total = _pooled(pooled)
    means = torch.stack([one.mean for one in pooled])
    means = (means - total.mean) / total.var.clamp_min(1e-12).sqrt()
    _, _, directions = torch.linalg.svd(means - means.mean(0), full_matrices=False)
    along = (means - means.mean(0)) @ directions[0]
    order = along.argsort()
    best: tuple[float, int] | None = None
    least = max(2, len(pooled) // 4)
    for cut in range(least, len(pooled) - least + 1):
        groups = along[order[:cut]], along[order[cut:]]
        within = math.sqrt(sum(float(((g - g.mean()) ** 2).sum()) for g in groups) / (len(pooled) - 2))
        apart = float(groups[1].mean() - groups[0].mean()) / max(within, 1e-9)
        if best is None or apart > best[0]:
            best = apart, cut
    if best is None or best[0] < _APART:
        return None
    chosen = order[: best[1]], order[best[1] :]
    return _spread([_pooled([pooled[int(i)] for i in group]) for group in chosen])


# Distance of two groups of batches in standard deviations within them. The best cut of normal values is at
# most 3.5 apart among twelve.
_APART = 8.0


def _pooled(several: Sequence[_Moments]) -> _Moments:
    count = sum(one.count for one in several)
    mean = sum((one.mean * (one.count / count) for one in several), torch.zeros(()))
    square = sum(
        ((one.var + (one.mean - mean) ** 2) * (one.count / count) for one in several), torch.zeros(())
    )
    return _Moments(count, mean, square)


def _spread(several: Sequence[_Moments], consistency: float | None = None) -> Distributions:
    total = _pooled(several)
    deviation = total.var.clamp_min(1e-12).sqrt()
    offsets = [float((((one.mean - total.mean) / deviation) ** 2).mean().sqrt()) for one in several]
    variances = [float(one.var.mean()) for one in several]
    smallest = min(variances)
    ratio = max(variances) / smallest if smallest > 1e-12 * max(variances) else math.inf
    return Distributions(len(several), tuple(variances), ratio, max(offsets), consistency)
