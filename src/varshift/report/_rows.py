"""The rows of a report: one for each norm and each noise site, with all their figures."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from varshift._sites import SiteId, Source
from varshift.rules import shift_of

_SPARSE = {"sparse": True}  # left out of the file where it has its default


@dataclass(frozen=True, slots=True)
class StatisticsInfo:
    """What a norm says about itself, read without running it.

    Attributes:
        eps: Its epsilon.
        momentum: Its momentum; null for a cumulative average or when it has none.
        batches_tracked: Number of batches that it has counted, null when it does not count.
        largest: Largest finite running variance.
        dtype: Type of the running variance.
        never_moved: Whether the running mean is exactly 0 and the running variance exactly 1.
        nonfinite: Number of channels with a NaN or infinite running mean or variance.
        negative: Number of channels with a negative running variance.
        collapsed: Number of channels without signal: a running variance below a hundredth of eps, and a
            weight that is not zero.
        live: Whether it is in training mode after train(), and was not passed in eval mode within a model in
            training mode.
        frozen_parameters: Whether it has parameters and none of them requires a gradient.
        tracks: False when it owns running statistics that evaluation uses and training does not update.
        affine_moved: Whether training has moved its weights or biases, null when it has neither.
        reestimated: "measured" or "predicted" where a recalibration has marked the statistics, else null.
    """

    eps: float
    momentum: float | None
    batches_tracked: int | None
    largest: float | None
    dtype: str = field(default="float32", metadata=_SPARSE)
    never_moved: bool = field(default=False, metadata=_SPARSE)
    nonfinite: int = field(default=0, metadata=_SPARSE)
    negative: int = field(default=0, metadata=_SPARSE)
    collapsed: int = field(default=0, metadata=_SPARSE)
    live: bool = field(default=True, metadata=_SPARSE)
    frozen_parameters: bool = field(default=False, metadata=_SPARSE)
    tracks: bool = field(default=True, metadata=_SPARSE)
    affine_moved: bool | None = field(default=None, metadata=_SPARSE)
    reestimated: str | None = field(default=None, metadata=_SPARSE)


@dataclass(frozen=True, slots=True)
class MeasuredFigures:
    """What was measured at a norm. Ratios read "deployed over learned": 1 is healthy.

    Attributes:
        moving_var: Channel mean of the running variance.
        real_var: Channel mean of the variance of the norm's input in state eval.
        ratio: real_var / moving_var.
        channel_log_ratio_rms: Root mean square over channels of the log-ratio.
        mean_offset: Root mean square over channels of the offset of the mean, in standard deviations.
        local_ratio: Variance in state clean over variance in state train.
        control_ratio: The ratio after recalibrating without noise: what depth and small batches do alone.
        fresh_ratio: The ratio after recalibrating with noise: what the noise alone does.
        train_var: Channel mean of the pooled variance in state train.
        stale_ratio: train_var / moving_var: 1 when the statistics are those that training produces.
        stale_error: Relative standard error of train_var over batches.
        stale_mean: Root mean square over channels of the offset of the training mean, in standard deviations.
        stale_mean_error: Standard error of that offset.
        values_per_channel: Smallest number of values per channel that one batch brought.
        effective_batch: Number of independent values that one batch is worth.
        effective_batch_error: Its relative standard error.
    """

    moving_var: float | None = None
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
class PredictedFigures:
    """What weights and statistics alone let expect at a norm.

    Attributes:
        ratio: The ratio to expect.
        local_ratio: The local ratio to expect.
        mean_offset: The offset of the mean to expect, in standard deviations.
        noise_share: Share of the variance in training that is noise.
        confidence: How far the prediction can be trusted: "high", "medium", "low", or "none" where there are
            no figures; null in files of version 1.
        reason: Why there are no figures.
    """

    ratio: float | None
    local_ratio: float | None = None
    mean_offset: float | None = None
    noise_share: float | None = None
    confidence: str | None = None
    reason: str | None = field(default=None, metadata=_SPARSE)


@dataclass(frozen=True, slots=True)
class LayerRow:
    """One norm. Figures that were not measured or not predicted are None.

    Attributes:
        id: Its name.
        cls: Class name of its module.
        source: The line of code that calls it.
        channels: Number of channels.
        reached: Whether the data arrived there; without data, whether the captured network runs it.
        noise: The last noise site upstream in order of execution.
        noise_count: Number of noise sites upstream; `Report.noises_before` lists them.
        statistics: What it says about itself.
        measured: What was measured, null without data.
        predicted: What was predicted, null where it was not.
    """

    id: SiteId
    cls: str = field(metadata={"json": "class"})
    source: Source | None
    channels: int
    reached: bool
    noise: SiteId | None = None
    noise_count: int = 0
    statistics: StatisticsInfo | None = None
    measured: MeasuredFigures | None = None
    predicted: PredictedFigures | None = None

    @property
    def name(self) -> str:
        """Module path."""
        return self.id.module

    @property
    def moving_var(self) -> float | None:
        """Channel mean of the running variance."""
        return self.measured.moving_var if self.measured else None

    @property
    def real_var(self) -> float | None:
        """Channel mean of the variance of its input in state ``eval``."""
        return self.measured.real_var if self.measured else None

    @property
    def ratio(self) -> float | None:
        """The measured ``real_var / moving_var``."""
        return self.measured.ratio if self.measured else None

    @property
    def shift(self) -> float | None:
        """``max(ratio, 1 / ratio)`` as measured."""
        return shift_of(self.ratio)

    @property
    def local_ratio(self) -> float | None:
        """The measured variance in ``clean`` over that in ``train``."""
        return self.measured.local_ratio if self.measured else None

    @property
    def control_ratio(self) -> float | None:
        """The measured ratio after recalibrating without noise."""
        return self.measured.control_ratio if self.measured else None

    @property
    def predicted_ratio(self) -> float | None:
        """The ratio that weights and statistics let expect."""
        return self.predicted.ratio if self.predicted else None


@dataclass(frozen=True, slots=True)
class NoiseRow:
    """One noise site.

    Attributes:
        id: Its name.
        cls: Class name of the module that owns it.
        rate: Its drop probability or strength, null when unknown.
        source: The line of code that makes the noise.
        reaches: The norms downstream as ranges of positions in the list of norms: [3, 5] is the fourth and
            the fifth, as in a slice.
        nearest: The first norm that it reaches.
        path: How it reaches that one.
        drops: What a drop path drops: "branch", "identity", "everything" or "nothing".
        additive: Whether the noise is a term of the signal and not a factor.
    """

    id: SiteId
    cls: str = field(metadata={"json": "class"})
    rate: float | None
    source: Source | None
    reaches: tuple[tuple[int, int], ...] = ()
    nearest: SiteId | None = None
    path: Literal["direct", "weight", "join", "none"] = "none"
    drops: str | None = field(default=None, metadata=_SPARSE)
    additive: bool = field(default=False, metadata=_SPARSE)

    @property
    def name(self) -> str:
        """Path of the module that owns it."""
        return self.id.module

    @property
    def kind(self) -> str:
        """What noise it is, ``"dropout"``."""
        return self.id.kind

    @property
    def reaches_count(self) -> int:
        """Number of norms downstream."""
        return sum(stop - start for start, stop in self.reaches)
