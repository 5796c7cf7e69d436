"""Running statistics that fit the deployed network."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from varshift._errors import ModelError, VarshiftError, VarshiftWarning
from varshift.flow import may_hold_statistics, recognise_norms
from varshift.model import (
    Forward,
    Norm,
    Origin,
    Shadow,
    State,
    find_norms,
    loader_of,
    marked,
    network_of,
    one_at_a_time,
    origins,
    require_values,
    shadowed,
)
from varshift.moments import examples_for, stated_shape
from varshift.probe._collect import Collector, raise_failures
from varshift.probe._distributed import Ranks
from varshift.probe._effect import Effect, effect_of, held_back_losses
from varshift.probe._loss import Loss
from varshift.probe._moments import Moments
from varshift.probe._pass import Progress, Stop
from varshift.probe._predicted import predicted_statistics
from varshift.probe._recalibration import LayerChange, Recalibration, Value
from varshift.probe._states import UNREAD, frozen_norms
from varshift.probe._tap import Statistics, as_kept

Estimator = Literal["pooled", "ema"]
# Accumulators by device and type, each with its norms and where their channels are.
Banks = Sequence[tuple[tuple[Norm, ...], Mapping[str, slice], Moments]]


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
    loss: Loss | None = None,
    frozen: bool = False,
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
    (`varshift.predict`). Norms that no noise reaches, those whose prediction is uncertain, and those whose
    statistics were re-estimated without noise before keep theirs: for these there is nothing to predict.
    Statistics that come from here bear a mark in their last bits, which goes wherever they go and which
    further training wipes out.

    **Effect.** Every third batch, at most 16 in all, is held back where a loss is known (of a loader that
    does not say how many batches it has, every fifth). The loss of the deployed network on these batches is
    measured with the statistics as found, and with those of the other batches, which have not seen them:
    `handle.effect`. The statistics that remain come from all batches. (Where one sample or batch dominates
    the statistics, these are used for the effect, too, lest it be missing there.) Where the loss got worse
    beyond its error, or where a single sample or batch dominates, a `VarshiftWarning` says so.

    **Frozen norms** keep their statistics, unless `frozen` is true: those whose parameters need no gradient
    while others do, those that are in eval mode while the model is in training mode, and those that the
    model's own ``train()`` holds in eval mode.

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
        loss: Function of outputs and targets, as in `check`, for the effect; by default the same as there.
        frozen: Whether to re-estimate the statistics of frozen norms, too.
        process_group: Processes that share the data; the default group in a distributed run.
        progress: Called with stage, batches done and batches in all (None when unknown).

    Returns:
        A handle with the changes per layer, the effect, and ``undo()``. Norms that no batch reached keep
        their statistics, and so do norms that use their running statistics in training too;
        ``handle.skipped`` says which.

    Warns:
        VarshiftWarning: If the loss of the deployed network got worse, or one sample or batch dominates the
            statistics.

    Raises:
        ModelError: If an activation or a statistic is not finite, `loss` fails, or another process failed.
        DataError: If the loader yields nothing, or inputs are not finite; without a loader, if there is no
            shape and the network states none.
        ValueError: If an argument is out of range, or asks for data while there is no loader.
    """
    asked = noise or frozen or estimator != "pooled"
    if loader is None and (asked or any(value is not None for value in (tolerance, max_batches, loss))):
        raise ValueError(
            "loader is None: noise, estimator, tolerance, max_batches, loss and frozen ask for data."
        )
    if loader is not None and shape is not None:
        raise ValueError(f"shape is {shape!r} beside a loader: it stands in for one, pass either.")
    if estimator not in ("pooled", "ema"):
        raise ValueError(f"estimator is {estimator!r}: expected 'pooled' or 'ema'.")
    if tolerance is not None and not tolerance > 0:
        raise ValueError(f"tolerance is {tolerance}: it is a relative error and must be above 0.")
    network = network_of(model)
    loader = loader_of(loader)
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
            shadow.run_eagerly(forward, loss)
            collector = Collector(
                network, shadow, forward, noise=noise, frozen=frozen, average=estimator == "ema", stop=stop
            )
            collector.run(loader, max_batches, ranks, progress)
            norms = find_norms(network, collector.recognised)
            statistics, reasons = _estimates(collector, collector.tap.moments, norms, estimator, ranks)
            counted = round(
                sum(float(n) for n in ranks.gather(torch.tensor(float(collector.batches), device="cpu")))
            )
            leverage = collector.leverage
            # What dominates the statistics must not be missing from those that the effect is measured with.
            dominated = any(found for (found,) in ranks.flags(leverage is not None))
            effect = _effect(
                collector, shadow, norms, None if dominated else estimator, statistics, ranks, forward, loss
            )
        layers, changes = _changes(norms, statistics, reasons, counted, None if noise else "measured")
        handle = Recalibration(
            layers,
            collector.batches,
            sum(collector.sizes),
            stop.reached if stop else None,
            changes,
            effect=effect,
            leverage=leverage,
        )
        _warn(handle)  # where warnings are errors, before anything is changed
    try:
        handle.apply()
        return handle
    except BaseException:  # an interrupt among others: without a handle nobody could undo it
        try:
            handle.undo()
        finally:
            handle.undo()
        raise


def _warn(handle: Recalibration) -> None:
    """Says what the user should look at before he trusts the new statistics."""
    texts = []
    leverage = handle.leverage
    if leverage is not None:
        texts.append(
            f"recalibrate: {leverage.words} dominates the statistics. It makes the variance at the norm "
            f"'{leverage.norms[0]}' {leverage.inflation:.3g} times that of the other batches. "
            "Look at it, leave it out or prepare it like the others, then recalibrate again."
        )
    if handle.effect is not None and handle.effect.worse:
        texts.append(
            f"recalibrate made the deployed network worse: {handle.effect}. handle.undo() gives the old "
            "statistics back: the weights may have been trained on these, or the batches are not like those "
            "of training."
        )
    if texts:
        warnings.warn(" ".join(texts), VarshiftWarning, stacklevel=3)


def _effect(
    collector: Collector,
    shadow: Shadow,
    norms: Sequence[Norm],
    estimator: Estimator | None,
    statistics: Statistics,
    ranks: Ranks,
    forward: Forward | None,
    loss: Loss | None,
) -> Effect | None:
    """The loss before and after on the batches that were held back, over all processes.

    With statistics of the other batches, or where no estimator is given with those of all batches.
    """
    if not any(held for (held,) in ranks.flags(bool(collector.held.calls))):
        return None
    if estimator is not None:
        statistics, _ = _estimates(collector, collector.tap.rest, norms, estimator, ranks)
    failure, rows = None, torch.zeros(0)
    try:
        rows = held_back_losses(shadow, collector.norms, collector.held.calls, statistics, forward, loss)
    except VarshiftError as error:
        failure = error
    raise_failures(failure, [failed for (failed,) in ranks.flags(failure is not None)])
    return effect_of(torch.cat(ranks.gather(rows)))


_DONE = "its statistics were re-estimated without noise already"


def _predicted(network: nn.Module, shape: Any, forward: Forward | None) -> Recalibration:
    """A recalibration without data, not yet applied."""
    with one_at_a_time, shadowed(network) as shadow, shadow, shadow:
        shape = stated_shape(network, forward) if shape is None else shape
        recognised = recognise_norms(shadow.network, examples_for(network, shape), forward)
        norms = find_norms(network, recognised)
        predicted, reasons = predicted_statistics(network, norms, shape, forward)
        reasons.update(dict.fromkeys(origins(norms), _DONE))
        reasons.update(frozen_norms(network, norms))
    by_name = {norm.name: norm for norm in norms}
    statistics = {
        name: (
            _fit(by_name[name], by_name[name].mean, mean),
            _fit(by_name[name], by_name[name].var, var),
        )
        for name, (mean, var) in predicted.items()
        if name not in reasons
    }
    layers, changes = _changes(norms, statistics, reasons, None, "predicted")
    return Recalibration(layers, 0, 0, None, changes, shape, predicted=True)


def _estimates(
    collector: Collector, banks: Banks, norms: Sequence[Norm], estimator: Estimator, ranks: Ranks
) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, str]]:
    """New statistics by norm name, and for the other norms the reason why they have none."""
    statistics: dict[str, tuple[Tensor, Tensor]] = {}
    reasons: dict[str, str] = {}
    own = {norm.name: norm for norm in norms}
    for norm in norms:
        if norm.states.unsupported is not None:
            reasons[norm.name] = norm.states.unsupported
    for stand_ins, slices, moments in banks:
        members = [own[norm.name] for norm in stand_ins]
        count, mean, var = _bank_estimate(members, moments, estimator, ranks)
        for norm in members:
            part = slices[norm.name]
            most = float(count[part].max())
            if norm.name in collector.frozen:
                reasons[norm.name] = collector.frozen[norm.name]
            elif norm.name not in collector.live:
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
    norms: Sequence[Norm],
    statistics: Statistics,
    reasons: dict[str, str],
    batches: int | None,
    origin: Origin | None,
) -> tuple[tuple[LayerChange, ...], list[Value]]:
    """What is to be written, with a mark where there is an origin, and what that does to each norm."""
    changes: list[Value] = []
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
        for state, value in norm.changes(mean, var):
            if origin is not None and state is norm.spread_state:
                value = marked(origin, norm, mean, value)
            changes.append((state, value))
        counter = norm.module._buffers.get("num_batches_tracked")
        if counter is not None and batches is not None:
            place = State(norm.module, ("num_batches_tracked",))
            changes.append((place, torch.full_like(counter, batches)))
    return tuple(layers), changes


def _channel_means(norm: Norm, mean: Tensor, var: Tensor) -> tuple[float, float]:
    """Channel means of the mean and the variance; NaN where what the norm keeps is not known."""
    if norm.states.unsupported is not None:
        return math.nan, math.nan
    return float(mean.detach().double().mean()), float(var.detach().double().mean())
