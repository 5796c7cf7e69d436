"""What a norm module says about itself, as plain data without tensors."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class NormFacts:
    """What a norm module says about itself, read without running it.

    Attributes:
        name: Module path.
        cls: Class name.
        channels: Number of channels.
        eps: Its epsilon.
        momentum: Its momentum; None for a cumulative average or when it has none.
        dtype: Type of the running variance, ``"float32"``.
        batches_tracked: ``num_batches_tracked``, None when the module does not count.
        never_moved: True when the running mean is exactly 0 and the running variance exactly 1.
        nonfinite: Number of channels with a NaN or infinite running mean or variance.
        negative: Number of channels with a negative running variance.
        collapsed: Number of channels whose signal is lost: the running variance is below a hundredth of eps,
            so less than a tenth of a standard deviation leaves the norm, and its weight there is not zero.
        largest: Largest finite running variance (None when there is none).
        live: True when it is in training mode after ``model.train()``, unless it was passed in eval mode
            within a model in training mode: it is held there by its user.
        frozen_parameters: True when it has parameters and none of them requires a gradient.
        tracks: False when it owns running statistics that evaluation uses and training does not update.
        reestimated: ``"measured"`` or ``"predicted"`` when its statistics bear the mark of a recalibration
            without noise, None when it is not known where they come from.
        affine_moved: Whether training has moved its weights or biases: they differ from channel to channel,
            or the biases are not 0. None when it has neither.
    """

    name: str
    cls: str
    channels: int
    eps: float
    momentum: float | None
    dtype: str
    batches_tracked: int | None
    never_moved: bool
    nonfinite: int
    negative: int
    collapsed: int
    largest: float | None
    live: bool
    frozen_parameters: bool
    tracks: bool = True
    reestimated: str | None = None
    affine_moved: bool | None = None
