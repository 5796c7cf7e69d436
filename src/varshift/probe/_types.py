"""What the probe measures, as plain data without tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class LayerMeasurement:
    """What was measured at one norm. Ratios read "deployed over learned" and are ratios of channel means.

    Attributes:
        name: Module path of the norm.
        reached: False when no batch arrived there; every figure but `moving_var` is then None.
        moving_var: Channel mean of the running variance as shipped.
        real_var: Channel mean of the variance of the norm's input in state ``eval``.
        ratio: ``real_var / moving_var``.
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


@dataclass(frozen=True, slots=True)
class GapStep:
    """One step from the loss in training to the loss as deployed.

    Attributes:
        cause: ``"noise"``, ``"small-batch"``, ``"variance-shift"`` or ``"statistics"``.
        delta: Change of the metric; None when a state's metric is not finite.
        stderr: Standard error of that change over batches (None with a single batch).
    """

    cause: Literal["noise", "small-batch", "variance-shift", "statistics"]
    delta: float | None
    stderr: float | None


@dataclass(frozen=True, slots=True)
class Gap:
    """The whole gap between training and deployment, split by counterfactual states on the same batches.

    Attributes:
        metric: ``"loss"``, or ``"relative_l2"`` when the data have no targets (the distance of the outputs
            from those of the network recalibrated without noise).
        states: Metric in ``train``, ``clean``, ``recalibrated``, ``recalibrated_noisy`` and ``eval``; None
            where it is not finite.
        steps: The four differences between consecutive states; they add up to ``eval - train``.
        accuracy: Top-1 accuracy in the same states, where targets are class indices.
        kl: Kullback-Leibler divergence from the recalibrated outputs, where there are no targets.
    """

    metric: str
    states: Mapping[str, float | None]
    steps: tuple[GapStep, ...]
    accuracy: Mapping[str, float] | None = None
    kl: Mapping[str, float] | None = None


@dataclass(frozen=True, slots=True)
class Measurement:
    """Everything one run of the probe brings back.

    Attributes:
        layers: One entry per norm, in the order of the model's modules.
        gap: The gap, None when no loss or output could be compared.
        batches: Number of batches used.
        samples: Number of samples used.
        eval_repeat_difference: Relative L2 distance between two runs of the same batch in ``eval``.
        batch_mate_difference: Relative L2 distance between a sample's output with all its batch mates and
            with half of them, in ``eval``; None when it could not be compared.
        limits: What could not be measured, in plain sentences.
    """

    layers: tuple[LayerMeasurement, ...]
    gap: Gap | None
    batches: int
    samples: int
    eval_repeat_difference: float | None = None
    batch_mate_difference: float | None = None
    limits: tuple[str, ...] = ()

    def layer(self, name: str) -> LayerMeasurement | None:
        """The entry of one norm, or None."""
        return next((layer for layer in self.layers if layer.name == name), None)
