"""What the probe measures, as plain data without tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class LayerMeasurement:
    """What was measured at one norm.

    Ratios read "deployed over learned" and are ratios of channel means, with the norm's eps on both sides.

    Attributes:
        name: Module path of the norm.
        reached: False when no batch arrived there; every figure but `moving_var` is then None.
        moving_var: Channel mean of the running variance as shipped.
        real_var: Channel mean of the variance of the norm's input in state ``eval``.
        ratio: ``(real_var + eps) / (moving_var + eps)``.
        channel_log_ratio_rms: Root mean square over channels of ``ln(real / moving)``.
        mean_offset: Root mean square over channels of ``(real mean - running mean) / real sigma``.
        local_ratio: Variance in ``clean`` over variance in ``train``.
        control_ratio: ``real / moving`` after recalibrating in ``clean``.
        fresh_ratio: ``real / moving`` after recalibrating in ``train``: what the noise alone does to a
            network whose statistics are up to date.
        train_var: Channel mean of the pooled variance in state ``train``.
        stale_ratio: ``train_var / moving_var``: 1 when the shipped statistics are what training produces.
        stale_error: Relative standard error of `train_var` over batches.
        stale_mean: Root mean square over channels of ``(train mean - running mean) / train sigma``.
        stale_mean_error: Standard error of that offset in sigmas.
        values_per_channel: Smallest number of values per channel that one batch brought.
        effective_batch: Mean within-batch variance over variance of batch means (state ``clean``); None for a
            norm that is called several times per pass.
        effective_batch_error: Its relative standard error; None with fewer than three batches.
    """

    name: str
    reached: bool
    moving_var: float | None
    real_var: float | None = None
    ratio: float | None = None
    channel_log_ratio_rms: float | None = None
    mean_offset: float | None = None
    local_ratio: float | None = None
    control_ratio: float | None = None
    fresh_ratio: float | None = None
    train_var: float | None = None
    stale_ratio: float | None = None
    stale_error: float | None = None
    stale_mean: float | None = None
    stale_mean_error: float | None = None
    values_per_channel: int | None = None
    effective_batch: float | None = None
    effective_batch_error: float | None = None


Step = Literal["noise", "function", "small-batch", "variance-shift", "statistics", "transform"]

# The states from training to deployment, and the step that leads to each of them.
STATES: tuple[tuple[str, Step | None], ...] = (
    ("train", None),
    ("clean", "noise"),
    ("clean_eval", "function"),
    ("recalibrated", "small-batch"),
    ("recalibrated_noisy", "variance-shift"),
    ("eval", "statistics"),
    ("deployed", "transform"),
)


@dataclass(frozen=True, slots=True)
class GapStep:
    """One step from the loss in training to the loss as deployed.

    Attributes:
        cause: ``"noise"``, ``"function"``, ``"small-batch"``, ``"variance-shift"``, ``"statistics"`` or
            ``"transform"``.
        delta: Change of the metric; None when a state's metric is not finite.
        stderr: Standard error of that change over batches (None with a single batch).
    """

    cause: Step
    delta: float | None
    stderr: float | None


@dataclass(frozen=True, slots=True)
class Gap:
    """The whole gap between training and deployment, split by counterfactual states on the same batches.

    Attributes:
        metric: ``"loss"``, or ``"relative_l2"`` when the data have no targets (the distance of the outputs
            from those of the network recalibrated without noise).
        states: Metric in the states that were measured, in order (`STATES`): ``train``; ``clean``, without
            noise; ``clean_eval``, the same with modules in eval mode; ``recalibrated``, with statistics
            re-estimated without noise; ``recalibrated_noisy``, with statistics re-estimated with noise;
            ``eval``, as shipped; ``deployed``, as shipped on the batches of deployment. None where it is not
            finite.
        steps: The differences between consecutive states; they add up to the last state minus ``train``.
        accuracy: Top-1 accuracy in the same states, where targets are class indices.
        kl: Kullback-Leibler divergence from the recalibrated outputs, where there are no targets.
        batches: The metric of every batch in each state, None where it is not finite.
        sizes: Number of samples of each batch; those of deployment have their own, `deployed_sizes`.
        deployed_sizes: Number of samples of each batch of deployment.
    """

    metric: str
    states: Mapping[str, float | None]
    steps: tuple[GapStep, ...]
    accuracy: Mapping[str, float] | None = None
    kl: Mapping[str, float] | None = None
    batches: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)
    sizes: tuple[int, ...] = ()
    deployed_sizes: tuple[int, ...] = ()

    @property
    def last(self) -> str:
        """The state that the gap leads to: ``"deployed"`` where it was measured, else ``"eval"``."""
        return "deployed" if "deployed" in self.states else "eval"

    def step(self, cause: str) -> GapStep | None:
        """The step with this cause, None where it was not measured."""
        return next((step for step in self.steps if step.cause == cause), None)

    def rises(self, cause: str, share: float, errors: float) -> bool:
        """Whether a step raises the metric by more than a share of its best state and some of its errors.

        Args:
            cause: The step.
            share: Share of the metric in the state in which it is lowest.
            errors: Number of standard errors.
        """
        step = self.step(cause)
        if step is None or step.delta is None:
            return False
        lowest = min((abs(value) for value in self.states.values() if value is not None), default=0.0)
        return step.delta > max(share * lowest, errors * (step.stderr or 0.0))

    def change(self, first: str, last: str) -> tuple[float, float | None] | None:
        """How much the metric changes from one state to another, with its standard error over batches.

        The batches of both states are the same, so that the error is that of their differences; those of
        ``deployed`` are others, so that the errors of both states add up.

        Args:
            first: Name of a state.
            last: Name of another.

        Returns:
            The change and its standard error, None with fewer than two batches; None where the metric is
            not known or not finite.
        """
        before, after = self.states.get(first), self.states.get(last)
        if before is None or after is None:
            return None
        one, two = self.batches.get(first), self.batches.get(last)
        if not one or not two:
            return after - before, None
        if last == "deployed":
            errors = [standard_error(one, self.sizes), standard_error(two, self.deployed_sizes)]
            known = [error for error in errors if error is not None]
            return after - before, math.hypot(*known) if len(known) == len(errors) else None
        changes = [None if a is None or b is None else b - a for a, b in zip(one, two, strict=True)]
        return after - before, standard_error(changes, self.sizes)


def standard_error(values: Sequence[float | None], sizes: Sequence[int]) -> float | None:
    """Standard error of a mean over batches, weighted by their sizes; None for fewer than two batches."""
    count, total = len(values), sum(sizes)
    numbers = [value for value in values if value is not None]
    if count < 2 or len(numbers) < count or total <= 0:
        return None
    mean = sum(value * size for value, size in zip(numbers, sizes, strict=True)) / total
    squares = sum((size / total * (value - mean)) ** 2 for value, size in zip(numbers, sizes, strict=True))
    return math.sqrt(squares * count / (count - 1))


@dataclass(frozen=True, slots=True)
class Leverage:
    """One sample or batch that dominates the pooled variance of a norm.

    Attributes:
        norms: The norms that it dominates, in order of execution; the first is where it enters.
        inflation: Pooled variance of the first over the same without it; median over channels.
        share: Its share of the sum of squared deviations; median over channels.
        batch: Number of its batch among those of the loader; None where none that was drawn holds it.
        sample: Its place in the batch, or without one in the data set; None where it is the batch as a whole,
            or the place is not known.
        others: Number of further batches like it.
    """

    norms: tuple[str, ...]
    inflation: float
    share: float
    batch: int | None = None
    sample: int | None = None
    others: int = 0

    @property
    def words(self) -> str:
        """Which sample or batch it is, ``"sample 7 of batch 2"``."""
        if self.batch is None and self.sample is None:
            return "something that these batches do not hold"
        if self.batch is None:
            return f"sample {self.sample} of the data set"
        if self.sample is None:
            return f"batch {self.batch}"
        return f"sample {self.sample} of batch {self.batch}"


@dataclass(frozen=True, slots=True)
class Measurement:
    """Everything one run of the probe brings back.

    Attributes:
        layers: One entry per norm, in the order of the model's modules.
        gap: The gap, None when no loss or output could be compared.
        batches: Number of batches used.
        samples: Number of samples used.
        limits: What could not be measured, in plain sentences.
        leverage: The sample or batch that dominates the statistics, None where none does.
        suspected: What the stored statistics show where a sample may dominate them that these batches do not
            hold; `leverage` is the same where they prove it.
    """

    layers: tuple[LayerMeasurement, ...]
    gap: Gap | None
    batches: int
    samples: int
    limits: tuple[str, ...] = ()
    leverage: Leverage | None = None
    suspected: Leverage | None = None

    def layer(self, name: str) -> LayerMeasurement | None:
        """The entry of one norm, or None."""
        return next((layer for layer in self.layers if layer.name == name), None)


@dataclass(frozen=True, slots=True)
class NoiseBias:
    """How far the mean of the outputs over the noise is from the output without noise, on a few samples.

    Attributes:
        samples: Number of samples.
        groups: Number of batches that they come from.
        draws: How often each was run with noise.
        bias: Root mean square over samples and outputs of the mean over the noise minus the output without.
        bias_error: Its standard error over batches; None for a single batch, or where it is 0.
        offset: Mean over samples and outputs of the output without noise minus the mean over the noise.
        offset_error: Its standard error over batches.
        spread: Root mean square of the outputs without noise around their mean over samples.
        residual: Root mean square of the targets minus the mean over the noise, for targets that are numbers.
        loss: Loss of the outputs without noise; None where there is none.
        loss_step: Loss of the outputs without noise minus the loss of the outputs averaged over the noise.
        loss_step_error: Its standard error over batches.
        fits_numbers: Whether targets are numbers to be met, not classes or probabilities.
    """

    samples: int
    groups: int
    draws: int
    bias: float
    bias_error: float | None
    offset: float
    offset_error: float | None
    spread: float
    residual: float | None = None
    loss: float | None = None
    loss_step: float | None = None
    loss_step_error: float | None = None
    fits_numbers: bool = False
