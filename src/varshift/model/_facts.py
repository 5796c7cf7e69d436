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
        collapsed: Number of channels with a running variance below 100 eps.
        largest: Largest finite running variance (None when there is none).
        live: True when it is in training mode after ``model.train()``.
        frozen_parameters: True when it has parameters and none of them requires a gradient.
        tracks: False when it owns running statistics that evaluation uses and training does not update.
        reestimated: ``"measured"`` or ``"predicted"`` when its statistics bear the mark of a recalibration
            without noise, None when it is not known where they come from.
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
