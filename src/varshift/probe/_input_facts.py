"""What the inputs are, and what inputs the statistics of a network fit: plain data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

_RANGES = ((0.0, 1.0), (-1.0, 1.0), (-0.5, 0.5), (0.0, 255.0))  # of pixels

MapKind = Literal["standardised", "affine", "reversed"]


def _off(mean: float, deviation: float) -> float:
    return max(abs(mean), abs(math.log(max(deviation, 1e-12))))


@dataclass(frozen=True, slots=True)
class InputMoments:
    """Mean and standard deviation of the inputs, for each channel or for all values together.

    Attributes:
        mean: Mean of each channel.
        deviation: Standard deviation of each channel.
        low: Smallest value.
        high: Largest value.
        whole: Whether all values are whole numbers, as raw pixels are.
    """

    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    low: float
    high: float
    whole: bool

    @property
    def off_standard(self) -> float:
        """Largest distance of a channel from mean 0 (in units of 1) and deviation 1 (as a log ratio).

        Of many columns the smaller of that and the distance of all together: pixels in a row are
        standardised as one.
        """
        by_channel = max(_off(*pair) for pair in zip(self.mean, self.deviation, strict=True))
        return min(by_channel, _off(*self.together)) if len(self.mean) > 4 else by_channel

    @property
    def standardised(self) -> bool:
        """Whether they have a mean near 0 and a deviation near 1, as standardised data have."""
        return self.off_standard <= 0.35

    @property
    def in_usual_range(self) -> bool:
        """Whether they fill a usual range of pixels."""
        return any(
            max(abs(self.low - low), abs(self.high - high)) <= 0.1 * (high - low) for low, high in _RANGES
        )

    @property
    def together(self) -> tuple[float, float]:
        """Mean and standard deviation of all channels together."""
        count = len(self.mean)
        mean = sum(self.mean) / count
        second = sum(m**2 + d**2 for m, d in zip(self.mean, self.deviation, strict=True)) / count
        return mean, math.sqrt(max(second - mean**2, 0.0))


@dataclass(frozen=True, slots=True)
class InputTrial:
    """A map of the inputs under which the statistics of the network fit, and what it does.

    Distances are root mean squares over channels of ``(mean - running mean) / sigma`` and of half the log
    ratio of the variances, taken together, as shipped.

    Attributes:
        kind: ``"standardised"`` by the data's own moments, ``"affine"``: scale and shift fitted at the first
            norm, ``"reversed"``: the channels in reverse order.
        norm: The first norm.
        before: Moments of the inputs as they are.
        after: Moments of the mapped inputs: those that the statistics fit.
        scale: Factor of each channel.
        first_before: Distance at the first norm as it is.
        first_after: With mapped inputs.
        all_before: Mean distance over all norms as it is.
        all_after: With mapped inputs.
        loss_before: Loss as shipped, on the batches of the trial; None without a loss.
        loss_after: With mapped inputs.
        train_before: Loss with batch statistics and without noise; None without a loss.
        train_after: With mapped inputs.
        train_stderr: Standard error of their difference over batches.
    """

    kind: MapKind
    norm: str
    before: InputMoments
    after: InputMoments
    scale: tuple[float, ...]
    first_before: float
    first_after: float
    all_before: float
    all_after: float
    loss_before: float | None = None
    loss_after: float | None = None
    train_before: float | None = None
    train_after: float | None = None
    train_stderr: float | None = None


@dataclass(frozen=True, slots=True)
class DeployTrial:
    """How the batches of deployment differ from those of training, as the network sees them.

    Attributes:
        moments: Moments of the inputs of deployment.
        shape: Shape of one sample in training.
        deployed_shape: Shape of one sample in deployment.
        samples: Number of samples of the smaller of the two sets that were compared.
        norm: The norm whose inputs differ most between the loaders.
        norm_distance: Their distance there: root mean square over channels of the difference of the means in
            standard deviations and of half the log ratio of the variances, together.
        first_distance: The same at the first norm, which sees the data before the network has learned them.
        loss: Loss as shipped on the batches of deployment; None without a loss.
        loss_matched: The same once scale and shift of each channel are those of training.
        loss_reversed: The same once the channels of colour pictures come in reverse order.
    """

    moments: InputMoments
    shape: tuple[int, ...]
    deployed_shape: tuple[int, ...]
    samples: int
    norm: str | None
    norm_distance: float | None
    first_distance: float | None
    loss: float | None = None
    loss_matched: float | None = None
    loss_reversed: float | None = None


@dataclass(frozen=True, slots=True)
class Inputs:
    """The inputs of a network, next to those that its statistics fit.

    Attributes:
        moments: Moments of the inputs of the loader.
        trial: A map of the inputs that was tried, None where nothing called for it.
    """

    moments: InputMoments
    trial: InputTrial | None = None
