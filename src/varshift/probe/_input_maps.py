"""Maps of the inputs: is there one under which the statistics of a network fit its data again?

A network whose statistics were learned on prepared inputs and that now gets raw ones (or the other way round)
is off from the first norm on, and right again everywhere once its inputs are scaled and shifted. Statistics
that moved on their own cannot be mended so: later norms see what earlier ones make of other images.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from varshift.model import Call, Norm, tensors
from varshift.probe._few import FewRun, FewRunner
from varshift.probe._input_facts import DeployTrial, InputMoments, InputTrial, MapKind

_CHANNELS = 4  # of pictures: more are features of their own, which only their own moments can prepare
_STEPS = 4  # of Gauss and Newton; the first norm's moments are nearly linear in the parameters
_NUDGE = 0.05  # of a parameter, in units of a standard deviation, for a difference quotient
_FIT = 64  # samples for the fit
_FAR = 5.0  # distance of a channel beyond which it counts no more: a dead channel must not decide
_GOOD = 0.1  # distance of the first norm at which no other map is tried


@dataclass(frozen=True, slots=True)
class Affine:
    """A map ``x * scale + shift`` of the channels, in reverse order where `reverse` says so."""

    scale: Tensor
    shift: Tensor
    reverse: bool = False


def input_of(call: Call) -> Tensor | None:
    """The tensor that a map would change: the first floating-point input."""
    given = (call.args, call.kwargs) if call.reading is not None else call.batch
    tensor = next(tensors(given), None)
    return tensor if tensor is not None and tensor.is_floating_point() and tensor.dim() > 1 else None


def channel_axis(tensor: Tensor) -> int | None:
    """The axis of the channels of pictures or of the columns of a table; None to take all values together."""
    if tensor.dim() == 2:
        return 1
    if tensor.dim() in (4, 5):
        return (
            1 if tensor.shape[1] <= _CHANNELS else tensor.dim() - 1 if tensor.shape[-1] <= _CHANNELS else None
        )
    return None


def input_moments(calls: Sequence[Call]) -> InputMoments | None:
    """Moments of the inputs of several batches; None where there is no such input."""
    found = [tensor.detach() for call in calls if (tensor := input_of(call)) is not None]
    if len(found) < len(calls) or not found:
        return None
    rows = [_by_channel(tensor).double() for tensor in found]
    if len({len(one) for one in rows}) > 1:
        rows = [one.reshape(1, -1) for one in rows]
    values = torch.cat(rows, 1)
    deviation, mean = torch.std_mean(values, 1, correction=0)
    return InputMoments(
        tuple(mean.tolist()),
        tuple(deviation.tolist()),
        float(values.min()),
        float(values.max()),
        bool((values == values.round()).all()),
    )


def _by_channel(tensor: Tensor) -> Tensor:
    axis = channel_axis(tensor)
    return tensor.reshape(1, -1) if axis is None else tensor.movedim(axis, 0).flatten(1)


def mapped(call: Call, affine: Affine) -> Call:
    """The same call with its input mapped; targets stay as they are."""
    own = input_of(call)

    def change(tensor: Tensor) -> Tensor:
        if tensor is not own:
            return tensor
        axis = channel_axis(tensor)
        if axis is not None and affine.reverse:
            tensor = tensor.flip(axis)
        scale, shift = (value.to(tensor) for value in (affine.scale, affine.shift))
        if axis is None or scale.numel() == 1:
            return tensor * scale.reshape(-1)[0] + shift.reshape(-1)[0]
        shape = [-1 if number == axis else 1 for number in range(tensor.dim())]
        return tensor * scale.view(shape) + shift.view(shape)

    return call.map(change)


def distance(run: FewRun, norm: Norm) -> float | None:
    """Distance of what arrived at a norm from its running statistics; None where nothing did."""
    residual = _residual(run, norm)
    return None if residual is None else _size(residual)


def _size(residual: Tensor) -> float:
    return float(residual.view(2, -1).square().sum(0).clamp(max=_FAR**2).mean().sqrt())


def _residual(run: FewRun, norm: Norm) -> Tensor | None:
    """Offsets of the means in standard deviations, then half the log ratios of the variances."""
    moments = run.moments(norm)
    if moments is None:
        return None
    own_mean, own_var = (value.detach().reshape(-1).double().cpu() for value in (norm.mean, norm.var))
    return _apart(*moments, own_mean, own_var, norm)


def _apart(mean: Tensor, var: Tensor, own_mean: Tensor, own_var: Tensor, norm: Norm) -> Tensor:
    eps = float(getattr(norm.module, "eps", 0.0) or 0.0) + 1e-12
    offset = (mean - own_mean) / (own_var + eps).sqrt()
    spread = 0.5 * ((var + eps) / (own_var + eps)).log()
    return torch.cat([offset, spread]).nan_to_num(nan=_FAR, posinf=_FAR, neginf=-_FAR)


def try_maps(runner: FewRunner, calls: Sequence[Call], first: str, names: Sequence[str]) -> InputTrial | None:
    """Looks for a map of the inputs under which the first norm fits, and tries it on the whole network.

    Args:
        runner: Runs the network.
        calls: A few batches.
        first: Name of the first norm.
        names: Names of the norms to compare, the first one included.
    """
    before = input_moments(calls)
    norms = {norm.name: norm for norm in runner.norms if norm.name in names and norm.rows == 1}
    if before is None or first not in norms:
        return None
    few = calls[0].take(_FIT) or calls[0]
    search = _Search(runner, [few], norms[first])
    best = search.best(before)
    if best is None:
        return None
    kind, affine = best
    changed = [mapped(call, affine) for call in calls]
    shipped = [runner.run(some, "called") for some in (calls, changed)]
    trained = [runner.run(some, "batch") for some in (calls, changed)]
    after = input_moments(changed)
    firsts = [distance(run, norms[first]) for run in shipped]
    means = [_mean(distance(run, norm) for norm in norms.values()) for run in shipped]
    if after is None or None in firsts or None in means:
        return None
    changes = [
        None if a is None or b is None else b - a
        for a, b in zip(trained[0].losses, trained[1].losses, strict=True)
    ]
    known = [change for change in changes if change is not None and math.isfinite(change)]
    error = statistics.stdev(known) / math.sqrt(len(known)) if len(known) == len(changes) > 1 else None
    return InputTrial(
        kind=kind,
        norm=first,
        before=before,
        after=after,
        scale=tuple(affine.scale.reshape(-1).tolist()),
        first_before=firsts[0] or 0.0,
        first_after=firsts[1] or 0.0,
        all_before=means[0] or 0.0,
        all_after=means[1] or 0.0,
        loss_before=_finite(shipped[0].loss),
        loss_after=_finite(shipped[1].loss),
        train_before=_finite(trained[0].loss),
        train_after=_finite(trained[1].loss),
        train_stderr=error,
    )


def compare_loaders(
    runner: FewRunner, calls: Sequence[Call], deployed: Sequence[Call], names: Sequence[str]
) -> DeployTrial | None:
    """Compares batches of training and of deployment: their inputs, and what these make of the norms' inputs.

    Args:
        runner: Runs the network.
        calls: A few batches of training.
        deployed: A few batches of deployment.
        names: Names of the norms to compare, in order of execution.
    """
    before, after = input_moments(calls), input_moments(deployed)
    one, other = input_of(calls[0]), input_of(deployed[0])
    if before is None or after is None or one is None or other is None:
        return None
    plain, shipped = runner.run(calls, "called", losses=False), runner.run(deployed, "called")
    norms = {norm.name: norm for norm in runner.norms if norm.rows == 1}
    found = [
        (value, name)
        for name in names
        if name in norms and (value := _between(plain, shipped, norms[name])) is not None
    ]
    worst = max(found, default=(None, None))
    loss_matched = None
    if len(before.mean) == len(after.mean):
        mean, deviation = (
            torch.tensor(values, dtype=torch.float64) for values in (before.mean, before.deviation)
        )
        own_mean, own = (
            torch.tensor(values, dtype=torch.float64) for values in (after.mean, after.deviation)
        )
        scale = deviation / own.clamp_min(1e-12)
        affine = Affine(torch.where(own > 0, scale, 1.0), mean - own_mean * torch.where(own > 0, scale, 1.0))
        loss_matched = _finite(runner.run([mapped(call, affine) for call in deployed], "called").loss)
    loss_reversed = None
    if len(after.mean) == 3 and other.dim() > 2:
        turned = Affine(torch.ones(3), torch.zeros(3), reverse=True)
        loss_reversed = _finite(runner.run([mapped(call, turned) for call in deployed], "called").loss)
    return DeployTrial(
        after,
        tuple(one.shape[1:]),
        tuple(other.shape[1:]),
        min(sum(call.size for call in several) for several in (calls, deployed)),
        worst[1],
        worst[0],
        found[0][0] if found else None,
        _finite(shipped.loss),
        loss_matched,
        loss_reversed,
    )


def _between(one: FewRun, other: FewRun, norm: Norm) -> float | None:
    """Distance of what arrived at a norm in one run from what arrived in another."""
    expected, arrived = one.moments(norm), other.moments(norm)
    return None if expected is None or arrived is None else _size(_apart(*arrived, *expected, norm))


class _Search:
    """Looks for a map under which one norm gets what its statistics say."""

    def __init__(self, runner: FewRunner, calls: Sequence[Call], norm: Norm) -> None:
        self._runner, self._calls, self._norm = runner, calls, norm

    def best(self, before: InputMoments) -> tuple[MapKind, Affine] | None:
        """The map with the smallest distance, and its kind; None where every one fails."""
        mean, deviation = (
            torch.tensor(values, dtype=torch.float64) for values in (before.mean, before.deviation)
        )
        scale = torch.where(deviation > 0, 1 / deviation.clamp_min(1e-30), 1.0)  # a constant column stays
        whole, spread = before.together
        plain = torch.ones_like(mean), torch.zeros_like(mean)
        found: list[tuple[float, MapKind, Affine]] = []

        def add(kind: MapKind, affine: Affine) -> None:
            value = self._distance(affine)
            if value is not None:
                found.append((value, kind, affine))

        if not before.standardised:
            add("standardised", Affine(scale, -mean * scale))
            if len(mean) > 1 and spread > 0:
                add("standardised", Affine(torch.tensor([1 / spread]), torch.tensor([-whole / spread])))
        if len(mean) == 3:
            add("reversed", Affine(*plain, reverse=True))
        if not found or min(found, key=lambda one: one[0])[0] > _GOOD:
            channels = len(mean) if len(mean) <= _CHANNELS else 1
            typical = spread
            for sign in (1.0, -1.0):
                fitted = self._fit(channels, typical or 1.0, sign)
                if fitted is not None:
                    add("affine", fitted)
        if not found:
            return None
        _, kind, affine = min(found, key=lambda one: one[0])
        return kind, affine

    def _residual(self, affine: Affine) -> Tensor | None:
        run = self._runner.run([mapped(call, affine) for call in self._calls], "called", losses=False)
        return _residual(run, self._norm)

    def _distance(self, affine: Affine) -> float | None:
        residual = self._residual(affine)
        return None if residual is None else _size(residual)

    def _fit(self, channels: int, typical: float, sign: float) -> Affine | None:
        """Gauss-Newton on the log of the scale and the shift of each channel, by difference quotients."""

        def affine(parameters: Tensor) -> Affine:
            scale, shift = parameters.view(2, -1)
            return Affine(sign * scale.exp(), shift)

        def residual(parameters: Tensor) -> Tensor | None:
            return self._residual(affine(parameters))

        parameters = torch.zeros(2 * channels, dtype=torch.float64)
        start = residual(parameters)
        if start is None:
            return None
        # The scale from the ratio of the variances: exact where the network is linear up to this norm.
        parameters[:channels] = -start.view(2, -1)[1].median()
        best, least = parameters, math.inf
        for _ in range(_STEPS):
            here = residual(parameters)
            if here is None:
                break
            size = float(here.clamp(-_FAR, _FAR).square().mean())
            if size < least:
                best, least = parameters.clone(), size
            slope = self._slope(residual, parameters, here, typical)
            if slope is None:
                break
            step = torch.linalg.lstsq(slope, -here[:, None], driver="gelsd").solution[:, 0]
            parameters = parameters + step.clamp(-3.0 * max(1.0, typical), 3.0 * max(1.0, typical))
        return affine(best)

    def _slope(
        self, residual: Callable[[Tensor], Tensor | None], parameters: Tensor, here: Tensor, typical: float
    ) -> Tensor | None:
        columns = []
        half = len(parameters) // 2
        for number in range(len(parameters)):
            # A shift is felt in units of the mapped deviation.
            width = _NUDGE if number < half else _NUDGE * typical * float(parameters[number - half].exp())
            nudged = parameters.clone()
            nudged[number] += width
            there = residual(nudged)
            if there is None:
                return None
            columns.append((there - here) / width)
        return torch.stack(columns, 1)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
