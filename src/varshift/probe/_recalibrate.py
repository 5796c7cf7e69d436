"""Running statistics that fit the deployed network."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from varshift._errors import ModelError
from varshift.flow import RecognisedNorms, may_hold_statistics, recognise_norms
from varshift.model import (
    Call,
    Forward,
    Holder,
    Norm,
    Reader,
    Shadow,
    State,
    find_norms,
    network_of,
    one_at_a_time,
    protected,
    release_signals,
    require_values,
    shadowed,
    watch_signals,
    write,
)
from varshift.moments import examples_for, stated_shape
from varshift.probe._distributed import Ranks
from varshift.probe._loader import FiniteWatch, draw, model_device
from varshift.probe._moments import Moments
from varshift.probe._pass import Progress, Stop, run_pass
from varshift.probe._predicted import predicted_statistics
from varshift.probe._states import UNREAD, live_norms, measurable_norms, set_noise
from varshift.probe._tap import Tap, as_kept
from varshift.probe._trial import try_readings

Estimator = Literal["pooled", "ema"]
_Statistics = dict[str, tuple[Tensor, Tensor]]
# A place that holds a statistic, and a value for it: `model.to` may replace the tensor itself.
_Value = tuple[State, Tensor]


@dataclass(frozen=True, slots=True)
class LayerChange:
    """What recalibration did to one norm. The four figures are channel means.

    Attributes:
        name: Module path of the norm.
        cls: Its class name.
        updated: Whether its statistics were replaced.
        reason: Why not, None when they were.
        mean_before: Running mean as found.
        var_before: Running variance as found.
        mean_after: Running mean now.
        var_after: Running variance now.
    """

    name: str
    cls: str
    updated: bool
    reason: str | None
    mean_before: float
    var_before: float
    mean_after: float
    var_after: float


class Recalibration:
    """Handle of a recalibration: what changed, and the way back.

    Attributes:
        layers: One `LayerChange` per norm, in the order of the model's modules.
        batches: Number of batches used by this process.
        samples: Number of samples used by this process.
        converged: Whether the tolerance was reached; None when none was given.
        shape: Without data: the shape of the inputs that the statistics were predicted for.
        predicted: Whether the statistics were predicted, without data.
    """

    def __init__(
        self,
        layers: tuple[LayerChange, ...],
        batches: int,
        samples: int,
        converged: bool | None,
        changes: Sequence[_Value] = (),
        shape: Any = None,
        predicted: bool = False,
    ) -> None:
        self.predicted = predicted
        self.layers, self.batches, self.samples, self.converged = layers, batches, samples, converged
        self.shape = shape
        self._new = tuple(changes)
        self._old = tuple((state, state.tensor.detach().clone()) for state, _ in changes)

    @property
    def skipped(self) -> dict[str, str]:
        """The norms that kept their statistics, and why."""
        return {layer.name: layer.reason for layer in self.layers if layer.reason is not None}

    def undo(self) -> None:
        """Gives every norm the statistics back that it had before, bit for bit; an error does not stop it."""
        try:
            _assign(self._old)
        except BaseException:
            _assign(self._old)
            raise

    def _apply(self) -> None:
        _assign(self._new)

    def __repr__(self) -> str:
        updated = sum(layer.updated for layer in self.layers)
        source = "without data" if self.predicted else f"from {self.batches} batches"
        if self.shape is not None:
            source += f", for inputs of shape {self.shape}"
        text = f"<Recalibration: {updated} of {len(self.layers)} norms updated {source}"
        if self.converged is not None:
            text += ", tolerance reached" if self.converged else ", tolerance not reached"
        for name, reason in list(self.skipped.items())[:3]:
            text += f"; '{name}' left alone: {reason}"
        more = len(self.skipped) - 3
        return text + (f"; and {more} more" if more > 0 else "") + ">"


def recalibrate(
    model: nn.Module,
    loader: Iterable[Any] | None = None,
    *,
    shape: Sequence[int] | Sequence[Sequence[int]] | None = None,
    noise: bool = False,
    estimator: Estimator = "pooled",
    max_batches: int | None = None,
    tolerance: float | None = None,
    forward: Forward | None = None,
    process_group: Any = None,
    progress: Progress | None = None,
) -> Recalibration:
    """Replaces the running statistics of every norm by those of the data, with all noise off.

    Each batch runs once in the state ``clean``: noise off, norms on batch statistics, weights fixed. The
    statistics are pooled over all values of all batches, weighted by their number, in float64::

        mean = sum(n_b mean_b) / n,    var = (sum(M2_b) + sum(n_b (mean_b - mean)^2)) / (n - 1)

    so that sorted data, unequal batches and large means do no harm. In a distributed run the sums go over all
    processes and every process ends up with the same bits.

    Without a loader the same statistics are predicted from the weights and the statistics that the norms hold
    (`varshift.predict`). Norms that no noise reaches, and those whose prediction is uncertain, keep theirs.

    The model is changed only at the very end. An error in the loader or the model, or Ctrl-C, leaves flags,
    momentum, hooks, buffers and random states bit for bit as they were.

    Args:
        model: The model; compiled models and data-parallel wrappers are unwrapped.
        loader: Batches, as the model was trained on them. Any iterable. None to do without data.
        shape: Without a loader: the shape of an input without the batch dimension, or several of them; by
            default the one that the network states, in its ``default_cfg`` or by a linear layer that comes
            first.
        noise: True keeps dropout and its kin on: the statistics that training would have produced.
        estimator: ``"pooled"``, or ``"ema"`` for each norm's own moving average with its own momentum,
            started from the stored statistics (the protocol of Li et al. 2018, section 4).
        max_batches: Largest number of batches to draw, all by default.
        tolerance: Stop as soon as the estimate of every norm is this good: relative standard error of its
            standard deviation, and standard error of its mean in sigmas (root mean square over channels, from
            the spread over batches). The loader should be shuffled.
        forward: Function of model and batch that runs the model; by default inputs are found as in `check`.
        process_group: Processes that share the data; the default group in a distributed run.
        progress: Called with stage, batches done and batches in all (None when unknown).

    Returns:
        A handle with the changes per layer and ``undo()``. Norms that no batch reached keep their statistics,
        and so do norms that use their running statistics in training too; the handle says which.

    Raises:
        ModelError: If an activation or a statistic is not finite, or another process failed.
        DataError: If the loader yields nothing, or inputs are not finite; without a loader, if there is no
            shape and the network states none.
        ValueError: If an argument is out of range, or asks for data while there is no loader.
    """
    if loader is None and (
        noise or estimator != "pooled" or tolerance is not None or max_batches is not None
    ):
        raise ValueError("loader is None: noise, estimator, tolerance and max_batches ask for data.")
    if loader is not None and shape is not None:
        raise ValueError(f"shape is {shape!r} beside a loader: it stands in for one, pass either.")
    if estimator not in ("pooled", "ema"):
        raise ValueError(f"estimator is {estimator!r}: expected 'pooled' or 'ema'.")
    if tolerance is not None and not tolerance > 0:
        raise ValueError(f"tolerance is {tolerance}: it is a relative error and must be above 0.")
    network = network_of(model)
    require_values(network)
    norms = find_norms(network)
    stop = None if tolerance is None else Stop(tolerance)
    if not norms and not may_hold_statistics(network):
        return Recalibration((), 0, 0, None if stop is None else True, predicted=loader is None)
    if loader is None:
        handle = _predicted(network, shape, forward)
    else:
        ranks = Ranks(process_group)
        with one_at_a_time, shadowed(network) as shadow, shadow, shadow:
            shadow.keep(loader)
            shadow.run_eagerly(forward)
            collector = _Collector(shadow, forward, noise, estimator, stop)
            collector.run(loader, max_batches, ranks, progress)
            norms = find_norms(network, collector.recognised)
            statistics, reasons = _estimates(collector, norms, estimator, ranks)
            counted = round(
                sum(float(n) for n in ranks.gather(torch.tensor(float(collector.batches), device="cpu")))
            )
        layers, changes = _changes(norms, statistics, reasons, counted)
        reached = stop.reached if stop else None
        handle = Recalibration(layers, collector.batches, collector.samples, reached, changes)
    try:
        handle._apply()
        return handle
    except BaseException:  # an interrupt among others: without a handle nobody could undo it
        try:
            handle.undo()
        finally:
            handle.undo()
        raise


def _predicted(network: nn.Module, shape: Any, forward: Forward | None) -> Recalibration:
    """A recalibration without data, not yet applied."""
    with one_at_a_time, shadowed(network) as shadow, shadow, shadow:
        shape = stated_shape(network, forward) if shape is None else shape
        recognised = recognise_norms(shadow.network, examples_for(network, shape), forward)
        norms = find_norms(network, recognised)
        predicted, reasons = predicted_statistics(network, norms, shape, forward)
    by_name = {norm.name: norm for norm in norms}
    statistics = {
        name: (
            _fit(by_name[name], by_name[name].mean, mean),
            _fit(by_name[name], by_name[name].var, var),
        )
        for name, (mean, var) in predicted.items()
    }
    layers, changes = _changes(norms, statistics, reasons, None)
    return Recalibration(layers, 0, 0, None, changes, shape, predicted=True)


class _Collector:
    """Runs the batches of one process and collects their moments."""

    def __init__(
        self,
        shadow: Shadow,
        forward: Forward | None,
        noise: bool,
        estimator: Estimator,
        stop: Stop | None,
    ) -> None:
        self._shadow, self._network, self._forward = shadow, shadow.network, forward
        self._noise, self._stop = noise, stop
        self._average, self._series = estimator == "ema", stop is not None
        self._watch = FiniteWatch()
        self._reader = Reader(self._network, forward)
        self.live: frozenset[str] = frozenset()
        self.recognised: RecognisedNorms = {}
        self.tap = Tap((), "batch")
        self.batches = self.samples = 0

    def run(
        self, loader: Iterable[Any], max_batches: int | None, ranks: Ranks, progress: Progress | None
    ) -> None:
        """Runs until the loader ends, the tolerance is reached, or a process fails.

        Processes meet only on the shared schedule of `Stop` and at the end, so their loaders may differ in
        length; one that is done, or has failed, still comes to each meeting.
        """
        batches = draw(loader, max_batches, model_device(self._network))
        total = _total(loader, max_batches)
        done, failure, rounds = False, None, 0
        while True:
            rounds += 1
            meets = False if self._stop is None else self._stop.due(rounds)
            try:
                done = done or not self._step(batches)
                if done or meets:
                    self._watch.complain()
            except Exception as error:
                if not ranks.active:
                    raise
                done, failure = True, failure or error
            if progress is not None and not done:
                progress("recalibrating", self.batches, total)
            if done and (self._stop is None or not ranks.active):
                meets = True
            if not meets:
                continue
            states = ranks.flags(done, failure is not None)
            _raise_failures(failure, [failed for _, failed in states])
            if self._stop is not None and self._stop.look(self.tap, ranks):
                return
            if all(finished for finished, _ in states):
                return

    def _step(self, batches: Iterator[tuple[int, Any]]) -> bool:
        """Runs the next batch; false when there is none."""
        number, batch = next(batches, (None, None))
        if number is None:
            return False
        self._watch.look(number, batch)
        if number == 0:
            several = len(self._reader.readings(batch)) > 1
            try_readings(self._shadow, self._reader, [batch], forward=self._forward, compares=several)
        call = self._reader.read(batch)
        if number == 0:
            self._prepare(call)
        run_pass(self._network, self._forward, call.copy(), self.tap)
        self.batches += 1
        self.samples += call.size
        return True

    def _prepare(self, call: Call) -> None:
        self.recognised = recognise_norms(self._network, call, self._forward)
        self._shadow.fresh()
        norms = measurable_norms(self._network, self.recognised)
        self.live, by_hand = live_norms(self._shadow, norms, self._forward, call)
        self.tap = Tap(norms, "batch", live=self.live, average=self._average, series=self._series)
        set_noise(self._network, norms, self._noise, by_hand)


def _total(loader: Any, max_batches: int | None) -> int | None:
    try:
        length = len(loader)
    except (TypeError, NotImplementedError):
        return max_batches
    return length if max_batches is None else min(length, max_batches)


def _raise_failures(mine: Exception | None, failed: list[bool]) -> None:
    if mine is not None:
        raise mine
    if any(failed):
        ranks = ", ".join(str(rank) for rank, bad in enumerate(failed) if bad)
        raise ModelError(f"recalibration failed on process {ranks}; nothing was changed on this one either.")


def _estimates(
    collector: _Collector, norms: Sequence[Norm], estimator: Estimator, ranks: Ranks
) -> tuple[_Statistics, dict[str, str]]:
    """New statistics by norm name, and for the other norms the reason why they have none."""
    statistics: _Statistics = {}
    reasons: dict[str, str] = {}
    own = {norm.name: norm for norm in norms}
    for norm in norms:
        if norm.states.unsupported is not None:
            reasons[norm.name] = norm.states.unsupported
    for stand_ins, slices, moments in collector.tap.moments:
        members = [own[norm.name] for norm in stand_ins]
        count, mean, var = _bank_estimate(members, moments, estimator, ranks)
        for norm in members:
            part = slices[norm.name]
            most = float(count[part].max())
            if norm.name not in collector.live:
                reasons[norm.name] = "it uses its running statistics in training too"
            elif norm.name in collector.tap.unread:
                reasons[norm.name] = UNREAD
            elif most == 0:
                reasons[norm.name] = "no batch reached it"
            elif most == 1:
                reasons[norm.name] = "it saw a single value per channel, which has no variance"
            else:
                kept = as_kept(norm, count[part], mean[part], var[part])
                statistics[norm.name] = (_fit(norm, norm.mean, kept[0]), _fit(norm, norm.var, kept[1]))
    return statistics, reasons


def _bank_estimate(
    members: Sequence[Norm], moments: Moments, estimator: Estimator, ranks: Ranks
) -> tuple[Tensor, Tensor, Tensor]:
    pool = ranks.pooled(moments.pool, moments.between)
    if estimator == "pooled":
        return pool.count.cpu(), pool.mean.cpu(), pool.var.cpu()
    start = [
        torch.cat([getattr(norm, field).detach().double().reshape(-1) for norm in members])
        for field in ("mean", "var")
    ]
    mean, var = moments.average(*(value.to(moments.between.device) for value in start))
    # Every process follows its own batches; their averages count equally, as data-parallel training has it.
    averages = torch.stack(ranks.gather(torch.stack([mean, var]))).mean(0)
    return pool.count.cpu(), averages[0], averages[1]


def _fit(norm: Norm, buffer: Tensor, values: Tensor) -> Tensor:
    """Casts an estimate to a norm's own buffer; refuses what would not survive it."""
    cast = values.reshape(buffer.shape).to(device=buffer.device, dtype=buffer.dtype)
    if bool(torch.isfinite(cast).all()):
        return cast
    if bool(torch.isfinite(values).all()):
        raise ModelError(
            f"norm '{norm.name}': its statistics reach {float(values.abs().max()):.3g} and do not fit "
            f"{str(buffer.dtype).removeprefix('torch.')}. Keep the running statistics in float32; "
            "nothing was changed."
        )
    raise ModelError(
        f"norm '{norm.name}': the signal that arrives there is not finite although the inputs are. Look for "
        "NaN weights or an overflow upstream (half precision?); nothing was changed."
    )


def _changes(
    norms: Sequence[Norm], statistics: _Statistics, reasons: dict[str, str], batches: int | None
) -> tuple[tuple[LayerChange, ...], list[_Value]]:
    """What is to be written, and what that does to each norm."""
    changes: list[_Value] = []
    layers: list[LayerChange] = []
    for norm in norms:
        mean, var = statistics.get(norm.name, (norm.mean, norm.var))
        layers.append(
            LayerChange(
                norm.name,
                type(norm.module).__name__,
                norm.name in statistics,
                reasons.get(norm.name),
                *_channel_means(norm, norm.mean, norm.var),
                *_channel_means(norm, mean, var),
            )
        )
        if norm.name not in statistics:
            continue
        changes += norm.changes(mean, var)
        counter = norm.module._buffers.get("num_batches_tracked")
        if counter is not None and batches is not None:
            place = State(norm.module, ("num_batches_tracked",))
            changes.append((place, torch.full_like(counter, batches)))
    return tuple(layers), changes


@protected
def _assign(values: Sequence[_Value]) -> None:
    """Writes values into buffers; signals wait until all of them are written."""
    holder = Holder()
    try:
        watch_signals(holder)
        for state, value in values:
            write(state.tensor, value)
    finally:
        release_signals(holder)


def _channel_means(norm: Norm, mean: Tensor, var: Tensor) -> tuple[float, float]:
    """Channel means of the mean and the variance; NaN where what the norm keeps is not known."""
    if norm.states.unsupported is not None:
        return math.nan, math.nan
    return float(mean.detach().double().mean()), float(var.detach().double().mean())
