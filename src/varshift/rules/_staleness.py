"""How far the statistics of a norm are from those that training produces on the data given."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from varshift.theory import fold

from . import _thresholds as thresholds
from ._finding import Severity
from ._reading import known, positive
from ._stored import ratio_severity, size_of

if TYPE_CHECKING:
    from varshift.evidence import Evidence
    from varshift.model import NormFacts
    from varshift.probe import LayerMeasurement, Measurement


@dataclass(frozen=True, slots=True)
class Staleness:
    """How far a norm's statistics are from those that training produces on the same data.

    Attributes:
        name: The norm.
        variance: Folded ratio of the variances, 1 where it is within its error.
        offset: Offset of the mean in standard deviations, 0 where it is within its error.
        variance_error: Standard error of the ratio, the moving average's own noise included.
        mean_error: Likewise of the offset.
    """

    name: str
    variance: float
    offset: float
    variance_error: float
    mean_error: float

    @property
    def severity(self) -> Severity | None:
        """By itself, where no loss was measured."""
        return ratio_severity(self.variance, self.offset)

    @property
    def size(self) -> float:
        """One number to compare norms by."""
        return size_of(self.variance, self.offset)


def staleness_of(facts: NormFacts, layer: LayerMeasurement, measurement: Measurement) -> Staleness | None:
    """How far the statistics of a norm are from those of training, None where that was not measured."""
    ratio, offset = positive(layer.stale_ratio), known(layer.stale_mean)
    if ratio is None:
        return None
    # The moving average is an estimate too: it remembers (2 - m) / m batches, a cumulative one all of them.
    momentum = facts.momentum
    if momentum is not None and 0 < momentum <= 1:
        share = momentum / (2 - momentum)
    else:
        share = 1 / facts.batches_tracked if facts.batches_tracked else 0.0
    own_noise = math.sqrt(1 + measurement.batches * share)
    variance_error = known(layer.stale_error) or 0.0
    mean_error = known(layer.stale_mean_error) or 0.0
    if measurement.batches < thresholds.FEW_BATCHES:
        # Few batches tell little about their own spread: each sample then counts as one value per channel,
        # which is the most that values of one sample can hang together.
        samples = max(measurement.samples, 2)
        variance_error = max(variance_error, math.sqrt(2 / (samples - 1)))
        mean_error = max(mean_error, 1 / math.sqrt(samples))
    variance_error, mean_error = variance_error * own_noise, mean_error * own_noise
    offset = offset or 0.0
    ratio = min((ratio, ratio / _within_batches(layer)), key=fold)
    return Staleness(
        name=facts.name,
        variance=fold(ratio) if abs(ratio - 1) > thresholds.STANDARD_ERRORS * variance_error else 1.0,
        offset=offset if offset > thresholds.STANDARD_ERRORS * mean_error else 0.0,
        variance_error=variance_error,
        mean_error=mean_error,
    )


def is_learned(evidence: Evidence, name: str) -> bool:
    """Whether a norm holds what training with its noise produces: only the absence of the noise is felt.

    A moving average of noisy batches is never exact. It counts as far as its own error tells, if that would
    tell an error of a shift.
    """
    facts, layer, measurement = evidence.norms.get(name), evidence.measured.get(name), evidence.measurement
    if layer is None:
        return False
    ratio, offset = positive(layer.stale_ratio), known(layer.stale_mean) or 0.0
    if ratio is not None and ratio_severity(ratio, offset) is None:
        return True
    if facts is None or measurement is None or measurement.batches < thresholds.FEW_BATCHES:
        return False
    staleness = staleness_of(facts, layer, measurement)
    if staleness is None or staleness.severity is not None:
        return False
    seen = 1 + thresholds.STANDARD_ERRORS * staleness.variance_error
    return ratio_severity(seen, thresholds.STANDARD_ERRORS * staleness.mean_error) != "error"


def _within_batches(layer: LayerMeasurement) -> float:
    """Pooled variance over the mean variance within batches, which is what a norm accumulates.

    The two differ by ``1 / effective batch`` where the values of one sample hang together: 12 % at 8, without
    any fault. Below 4 this is a fault of the batches (sorted or grouped), and nothing is made good for it.
    """
    effective, values = positive(layer.effective_batch), layer.values_per_channel
    if effective is None or effective < 4 or not values:
        return 1.0
    return 1 + max(0.0, 1 / effective - 1 / values)
