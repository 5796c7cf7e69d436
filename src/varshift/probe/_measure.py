"""Runs a model in all its states on the same batches and measures every norm and the loss."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from varshift.flow import Flow, RecognisedNorms, recognise_norms
from varshift.model import (
    Call,
    Forward,
    Reader,
    Shadow,
    find_norms,
    network_of,
    norm_limit,
    one_at_a_time,
    primary_output,
    require_values,
    seed_all,
    shadowed,
    write,
)
from varshift.probe._gap import StateLosses, build_gap
from varshift.probe._layers import measure_layers
from varshift.probe._leverage import LeverageWatch, polluted
from varshift.probe._loader import FiniteWatch, draw
from varshift.probe._loss import Loss, batch_loss, correct, relative_l2
from varshift.probe._pass import Progress, run_pass
from varshift.probe._quiet import Quiet, is_silent
from varshift.probe._recalibrate import Estimator
from varshift.probe._states import UNREAD, live_norms, measurable_norms, set_noise
from varshift.probe._tap import Policy, Statistics, Tap
from varshift.probe._types import Gap, LayerMeasurement, Leverage, Measurement

# Outputs are kept for comparison only where there are no targets, and only up to this many bytes a state.
_OUTPUT_BYTES = 2**28
_SAME = 1e-5  # relative distance of outputs that differ by rounding only


def draw_batches(
    loader: Iterable[Any], max_batches: int | None, device: torch.device | str | None
) -> tuple[Any, ...]:
    """Draws the batches that every state will see, and makes sure that they are finite.

    Raises:
        DataError: If the loader yields nothing, or inputs are not finite.
    """
    watch = FiniteWatch()
    batches = []
    for number, batch in draw(loader, max_batches, device):
        watch.look(number, batch)
        batches.append(batch)
    watch.complain()
    return tuple(batches)


def measure(
    model: nn.Module,
    batches: Sequence[Any],
    *,
    forward: Forward | None = None,
    loss: Loss | None = None,
    estimator: Estimator = "pooled",
    seed: int = 0,
    progress: Progress | None = None,
    recognised: RecognisedNorms | None = None,
    flow: Flow | None = None,
    deploy: Sequence[Any] = (),
) -> Measurement:
    """Measures every norm and the gap between training and deployment.

    A pass over the same batches for each state of `STATES`; states that cannot differ share one. A network
    without noise needs three. No pass writes to the model: statistics are exchanged at the norms' kernels.
    Flags, buffers and random states are restored bit for bit.

    Args:
        model: The model; compiled models and data-parallel wrappers are unwrapped.
        batches: The batches, on the model's device, as they come or as calls.
        forward: Function of model and batch that runs the model.
        loss: Function of outputs and targets.
        estimator: ``"pooled"``, or ``"ema"`` for the protocol of Li et al. 2018: moving averages of
            within-batch variances with each norm's momentum, in place of pooled ones.
        seed: Seed of the noise.
        progress: Called with stage, batches done and batches in all.
        recognised: The norms written by hand, as a capture recognised them; by default they are looked for.
        flow: The network as captured in train mode; without it noise and function are one step.
        deploy: Batches as deployment prepares them.
    """
    network = network_of(model)
    require_values(network)
    with one_at_a_time, shadowed(network) as shadow, shadow, shadow:
        return measure_shadow(
            shadow,
            batches,
            forward=forward,
            loss=loss,
            estimator=estimator,
            seed=seed,
            progress=progress,
            recognised=recognised,
            flow=flow,
            deploy=deploy,
        )


def measure_shadow(
    shadow: Shadow,
    batches: Sequence[Any],
    *,
    forward: Forward | None = None,
    loss: Loss | None = None,
    estimator: Estimator = "pooled",
    seed: int = 0,
    progress: Progress | None = None,
    recognised: RecognisedNorms | None = None,
    flow: Flow | None = None,
    deploy: Sequence[Any] = (),
) -> Measurement:
    """`measure` on a shadow that there is already."""
    shadow.fresh()
    seed_all(seed)
    shadow.run_eagerly(forward, loss)
    if recognised is None:
        recognised = recognise_norms(shadow.network, batches[0], forward)
        shadow.fresh()
        seed_all(seed)
    return _Probe(shadow, batches, forward, loss, estimator, progress, recognised, flow, deploy).measure()


@dataclass
class _Result:
    """What one state brought back."""

    tap: Tap
    losses: list[float | None] = field(default_factory=list)
    correct: list[tuple[int, int] | None] = field(default_factory=list)
    outputs: list[Tensor] | None = field(default_factory=list)
    first: Tensor | None = None  # output of the first batch


class _Probe:
    def __init__(
        self,
        shadow: Shadow,
        batches: Sequence[Any],
        forward: Forward | None,
        loss: Loss | None,
        estimator: Estimator,
        progress: Progress | None,
        recognised: RecognisedNorms,
        flow: Flow | None,
        deploy: Sequence[Any],
    ) -> None:
        self._shadow, self._network = shadow, shadow.network
        self._norms = measurable_norms(self._network, recognised)
        everything = find_norms(self._network, recognised)
        self._unsupported = [norm_limit(norm) for norm in everything if norm.states.unsupported is not None]
        reader = Reader(self._network, forward)
        self._calls, self._deployed = (
            [batch if isinstance(batch, Call) else reader.read(batch) for batch in several]
            for several in (batches, deploy)
        )
        self._flow = flow
        self._forward, self._loss = forward, loss
        self._estimator: Estimator = estimator
        self._progress = progress
        self._done = 0
        self._all = 5 * len(self._calls) + len(self._deployed)
        self._live, self._by_hand = live_norms(shadow, self._norms, forward, self._calls[0], as_passed=True)

    def measure(self) -> Measurement:
        """Runs all states and works out the figures."""
        states: dict[str, _Result] = {}
        watch = LeverageWatch()
        train = states["train"] = self._run("train", noise=True, policy="batch", leverage=watch)
        clean = states["clean_eval"] = self._in_eval_mode(train)
        if (quiet := self._without_noise(train, clean)) is not None:
            states["clean"] = quiet
        shipped = states["eval"] = self._run("eval", noise=False, policy="called")
        fitting, learned = self._statistics(clean), self._statistics(train)
        healthy = noisy = self._run("recalibrated", noise=False, policy="running", statistics=fitting)
        if not _same_statistics(fitting, learned):
            noisy = self._run("recalibrated_noisy", noise=False, policy="running", statistics=learned)
        states |= {"recalibrated": healthy, "recalibrated_noisy": noisy}
        if self._deployed:
            states["deployed"] = self._run("deployed", noise=False, policy="called", calls=self._deployed)
        sizes = [call.size for call in self._calls]
        taps = (train.tap, clean.tap, shipped.tap)
        unread = frozenset[str]().union(*(tap.unread for tap in taps))
        layers = measure_layers(
            [norm for norm in self._norms if norm.name not in unread],
            train.tap,
            clean.tap,
            shipped.tap,
            healthy.tap,
            noisy.tap,
            estimator=self._estimator,
        )
        gap = build_gap(
            {name: StateLosses(state.losses, state.correct, state.outputs) for name, state in states.items()},
            sizes,
            [call.size for call in self._deployed],
        )
        limits = self._unsupported + [norm_limit(n, UNREAD) for n in self._norms if n.name in unread]
        limits.extend(_not_finite(gap, layers))
        leverage, suspected = self._leverage(watch, train.tap, sizes)
        return Measurement(
            layers=layers,
            gap=gap,
            batches=len(self._calls),
            samples=sum(sizes),
            limits=tuple(limits),
            leverage=leverage,
            suspected=suspected,
        )

    def _leverage(
        self, watch: LeverageWatch, train: Tap, sizes: Sequence[int]
    ) -> tuple[Leverage | None, Leverage | None]:
        """The sample or batch that dominates the statistics, and what hints at one that is not here."""
        eps = {norm.name: float(getattr(norm.module, "eps", 0.0) or 0.0) for norm in self._norms}
        found = watch.leverage(sizes, self._live, eps)
        if found is not None and found.batch is not None and found.sample is None:
            closer = LeverageWatch(found.norms[0])
            call = self._calls[found.batch]
            self._run("train", noise=True, policy="batch", calls=[call], leverage=closer)
            return replace(found, sample=closer.sample(0, [call.size])), None
        if found is not None or watch.first not in self._live:
            return found, None
        norm = next(norm for norm in self._norms if norm.name == watch.first)
        moments, part = next((m, slices[norm.name]) for norms, slices, m in train.moments if norm in norms)
        if float(moments.batches[part].max()) < 2 or float(moments.pool.count[part].min()) < 2:
            return None, None
        error, _ = moments.errors()
        pool = moments.pool
        stored = polluted(norm, pool.mean[part], pool.var[part], error[part], min(sizes))
        if stored is None:
            return None, None
        return (stored[0] if stored[1] else None), stored[0]

    def _statistics(self, source: _Result) -> Statistics:
        """Statistics that a state produces, for the norms that learn."""
        found: dict[str, tuple[Tensor, Tensor]] = {}
        buffers = {norm.name: norm.mean for norm in self._norms}
        for name, (mean, var) in source.tap.estimates(self._estimator).items():
            if name in self._live:
                like = buffers[name]
                found[name] = (
                    mean.reshape(like.shape).to(like.device, like.dtype),
                    var.reshape(like.shape).to(like.device, like.dtype),
                )
        return found

    def _in_eval_mode(self, train: _Result) -> _Result:
        """State ``clean_eval``; without noise most networks compute in it what they compute in train mode."""
        if is_silent(self._flow):
            first = self._run("clean_eval", noise=False, policy="batch", calls=self._calls[:1])
            if _same_results(first, train):
                return train
        return self._run("clean_eval", noise=False, policy="batch")

    def _without_noise(self, train: _Result, clean_eval: _Result) -> _Result | None:
        """State ``clean``: modules in train mode, noise off; None where it is not known what the noise is."""
        if self._flow is None:
            return None
        if is_silent(self._flow):
            return train
        first = self._run("clean", noise=True, policy="batch", calls=self._calls[:1], quiet=True)
        if _same_results(first, clean_eval):
            return clean_eval
        return self._run("clean", noise=True, policy="batch", quiet=True)

    def _run(
        self,
        state: str,
        *,
        noise: bool,
        policy: Policy,
        statistics: Statistics | None = None,
        calls: Sequence[Call] | None = None,
        quiet: bool = False,
        leverage: LeverageWatch | None = None,
    ) -> _Result:
        hand_batch = self._by_hand if policy == "batch" else frozenset()
        set_noise(self._network, self._norms, noise, hand_batch, as_passed=True)
        self._write_by_hand(statistics or {})
        tap = Tap(
            self._norms,
            policy,
            live=self._live,
            substitutes=statistics,
            average=self._estimator == "ema",
            series=policy == "batch",
            record=not quiet,
            leverage=leverage,
        )
        result = _Result(tap)
        silence = Quiet(self._network, self._flow) if quiet and self._flow else contextlib.nullcontext()
        try:
            for call in self._calls if calls is None else calls:
                own = call.copy()  # an in-place operation may overwrite it
                with silence:
                    outputs = run_pass(self._network, self._forward, own, tap)
                self._note(result, outputs, own)
                self._done += 1
                if self._progress is not None:
                    self._all = max(self._all, self._done)
                    self._progress(f"state {state}", self._done, self._all)
        finally:
            self._shadow.fresh()
        return result

    def _write_by_hand(self, statistics: Statistics) -> None:
        """Norms written by hand read their own buffers; these are restored after each pass."""
        with torch.no_grad():
            for norm in self._norms:
                if norm.name in self._by_hand and norm.name in statistics:
                    for state, value in norm.changes(*statistics[norm.name]):
                        write(state.tensor, value)

    def _note(self, result: _Result, outputs: Any, call: Call) -> None:
        value = batch_loss(outputs, call, self._loss)
        if not result.losses and (first := primary_output(outputs)) is not None:
            result.first = first.detach().to("cpu", copy=True)
        result.losses.append(value)
        result.correct.append(correct(outputs, call.targets))
        if value is not None or result.outputs is None:
            return
        output = primary_output(outputs)
        kept = sum(item.numel() * item.element_size() for item in result.outputs)
        if output is None or kept + output.numel() * output.element_size() > _OUTPUT_BYTES:
            result.outputs = None
        else:
            result.outputs.append(output.detach().to("cpu", copy=True))


def _same_statistics(one: Statistics, other: Statistics) -> bool:
    """Whether two states produce the same statistics, so that the network computes the same with both."""
    return one.keys() == other.keys() and all(
        torch.equal(value, other[name][position])
        for name, values in one.items()
        for position, value in enumerate(values)
    )


def _same_results(one: _Result, other: _Result) -> bool:
    """Whether the first batch had the same output and the same loss in two states."""
    if one.first is None or other.first is None or one.first.shape != other.first.shape:
        return False
    if not one.first.is_floating_point() or relative_l2(one.first, other.first) > _SAME:
        return False
    losses = one.losses[0], other.losses[0]
    return None in losses or math.isclose(losses[0] or 0.0, losses[1] or 0.0, rel_tol=1e-3)


def _not_finite(gap: Gap | None, layers: Sequence[LayerMeasurement]) -> list[str]:
    """What the report cannot show because it is not a finite number."""
    states = [name for name, value in gap.states.items() if value is None] if gap else []
    limits = []
    if states:
        limits.append(f"The loss is not finite in the states {', '.join(states)}: their steps are unknown.")
    first = next((layer for layer in layers if layer.reached and layer.real_var is None), None)
    if first is not None:
        limits.append(
            f"In evaluation the signal at the norm '{first.name}' is not finite, although the inputs are: "
            "look for NaN in weights or statistics, or an overflow, upstream."
        )
    return limits
