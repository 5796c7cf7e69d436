"""What a cause costs, and the one place that turns a cost into a severity."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from varshift.evidence import Evidence

from . import _thresholds as thresholds
from ._finding import SEVERITIES, Confidence, Severity

if TYPE_CHECKING:
    from varshift.probe import Gap

# The states before and after each step of the gap.
_AROUND = {
    "noise": ("train", "clean"),
    "function": ("clean", "clean_eval"),
    "small-batch": ("clean_eval", "recalibrated"),
    "variance-shift": ("recalibrated", "recalibrated_noisy"),
    "statistics": ("recalibrated_noisy", "eval"),
    "transform": ("eval", "deployed"),
}


@dataclass(frozen=True, slots=True)
class Cost:
    """What one or several neighbouring steps of the gap cost.

    Attributes:
        causes: The steps, in their order.
        delta: Change of the metric over all of them; positive where the network gets worse.
        stderr: Standard error of that change over batches, None with fewer than two.
        level: The metric where the network is best, of the states that the steps connect.
        metric: ``"loss"`` or ``"relative_l2"``.
        batches: Number of batches.
        scale: The smallest change of the metric that anybody would act on.
    """

    causes: tuple[str, ...]
    delta: float
    stderr: float | None
    level: float
    metric: str
    batches: int
    scale: float

    @property
    def significant(self) -> bool:
        """Whether it is beyond two of its standard errors, and large enough to be acted on."""
        error = thresholds.LOSS_STANDARD_ERRORS * (self.stderr or 0.0)
        return self.stderr is not None and abs(self.delta) > max(error, self.scale)

    @property
    def share(self) -> float:
        """The change in units of `level`; infinite for a level of zero."""
        return self.delta / self.level if self.level > 0 else math.copysign(math.inf, self.delta)

    @property
    def beyond_error(self) -> bool:
        """Whether the metric rises beyond two standard errors and by a hundredth, however small it is."""
        error = thresholds.LOSS_STANDARD_ERRORS * (self.stderr or 0.0)
        return self.stderr is not None and self.delta > max(error, thresholds.LOSS_SHARE * self.level)

    @property
    def by_heart(self) -> bool:
        """Whether it is a share of the loss worth a warning, of a loss too small to say so by itself."""
        enough = self.least >= thresholds.COST_WARNING * self.level
        return self.beyond_error and self.delta <= self.scale and enough

    @property
    def least(self) -> float:
        """The change less one and a half standard errors: what it surely is."""
        return self.delta - thresholds.COST_STANDARD_ERRORS * (self.stderr or 0.0)

    @property
    def decides(self) -> bool:
        """Whether it is known well enough to decide a severity: a loss, on several batches."""
        return self.metric == "loss" and self.stderr is not None and self.batches >= thresholds.FEW_BATCHES


def cost_of(evidence: Evidence, *causes: str) -> Cost | None:
    """What some neighbouring steps of the gap cost together, None where that was not measured.

    Args:
        evidence: What is known about the network.
        causes: Names of the steps, in their order.

    Example:
        >>> from varshift.evidence import Evidence
        >>> cost_of(Evidence(), "variance-shift", "statistics") is None
        True
    """
    measurement = evidence.measurement
    if measurement is None or measurement.gap is None:
        return None
    return cost_in(measurement.gap, *causes, batches=measurement.batches)


def cost_in(gap: Gap, *causes: str, batches: int = 0) -> Cost | None:
    """What some neighbouring steps of a gap cost together, None where one of its ends is not finite.

    Args:
        gap: The gap.
        causes: Names of the steps, in their order.
        batches: Number of batches, where the gap does not say it.
    """
    first, last = _AROUND[causes[0]][0], _AROUND[causes[-1]][1]
    if "clean" not in gap.states and last == "clean":
        last = "clean_eval"  # noise and function are one step where noise cannot be switched off alone
    change = gap.change(first, last)
    if change is None:
        return None
    delta, stderr = change
    levels = [value for name in (first, last) if (value := gap.states.get(name)) is not None]
    level = abs(min(levels))
    return Cost(causes, delta, stderr, level, gap.metric, len(gap.sizes) or batches, _scale(gap, level))


def price(cost: Cost | None) -> float | None:
    """What a finding says that it costs (`Finding.cost`): the change of the metric, None where unknown."""
    return cost.delta if cost is not None and math.isfinite(cost.delta) else None


def costs_by_step(gap: Gap) -> dict[str, Cost]:
    """What each step of a gap costs by itself.

    Where the statistics as shipped undo the variance shift, as after recalibrating, the shift is one that the
    network does not have: both steps are left out.

    Args:
        gap: The gap.
    """
    costs = {step.cause: cost for step in gap.steps if (cost := cost_in(gap, step.cause)) is not None}
    there, back = costs.get("variance-shift"), costs.get("statistics")
    both = cost_in(gap, "variance-shift", "statistics")
    if there and back and both:
        undone = there.delta * back.delta < 0 and not both.significant
        if undone and (there.significant or back.significant):
            del costs["variance-shift"], costs["statistics"]
    return costs


def graded(
    cost: Cost | None, by_ratio: Severity | None, *, confidence: Confidence = "measured"
) -> Severity | None:
    """The severity of a finding: by what it costs where that was measured, else by its ratios.

    An error costs a tenth of the loss or more, a warning a twentieth; what costs less, or nothing, is advice.
    The cost counts less one and a half standard errors, so that another seed of the check rarely changes the
    severity. Without data nothing is worse than a warning, unless it is certain.

    Args:
        cost: What the steps cost that the finding answers for, if that is known.
        by_ratio: Severity by other figures than the loss; None for no finding.
        confidence: How the finding is known.

    Returns:
        The severity; None where neither the loss nor the ratios show anything worth a word.
    """
    if cost is not None and cost.decides:
        severity = loss_severity(cost)
        if severity == "advice" and cost.by_heart:
            # Its share would be a warning, and only the data themselves make it small: these it has learnt by
            # heart. What others would cost the ratios have to tell, and they or the share have to be clear.
            clear = by_ratio == "error" or cost.least >= thresholds.APART * cost.level
            clear = clear or cost.delta >= thresholds.HEART_NATS
            return None if by_ratio is None else "warning" if clear else "advice"
        return None if severity == "advice" and by_ratio is None else severity
    if by_ratio == "error" and confidence in ("predicted", "suspected"):
        return "warning"
    return by_ratio


def loss_severity(cost: Cost) -> Severity:
    """The severity that a change of the loss has by itself."""
    if not cost.significant or cost.least <= 0:
        return "advice"
    if cost.least >= thresholds.COST_ERROR * cost.level:
        return "error"
    return "warning" if cost.least >= thresholds.COST_WARNING * cost.level else "advice"


def milder(one: Severity, other: Severity) -> Severity:
    """The milder of two severities."""
    return SEVERITIES[max(SEVERITIES.index(one), SEVERITIES.index(other))]


def graver(one: Severity, other: Severity) -> Severity:
    """The graver of two severities."""
    return SEVERITIES[min(SEVERITIES.index(one), SEVERITIES.index(other))]


def _scale(gap: Gap, level: float) -> float:
    # Distances of outputs are shares already; stale moving averages move them by a few per cent in healthy
    # networks. Of the losses only cross-entropy has a scale of its own: a network that has learnt its data by
    # heart has a loss near zero, where any share of it is nothing.
    if gap.metric != "loss":
        return thresholds.COST_WARNING
    return max(thresholds.LOSS_SHARE * level, thresholds.LOSS_NATS if gap.accuracy is not None else 0.0)
