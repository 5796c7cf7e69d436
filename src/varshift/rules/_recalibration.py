"""The cure "recalibrate", as far as it was measured to help."""

from __future__ import annotations

from dataclasses import replace

from varshift.evidence import Evidence

from ._cost import Cost, cost_of
from ._cures import cure
from ._finding import Cure

_REMOVED = ("variance-shift", "statistics")


def removed_by_recalibration(evidence: Evidence) -> Cost | None:
    """What the steps cost together that re-estimating the statistics removes; negative where they help."""
    return cost_of(evidence, *_REMOVED)


def deployed_cost(evidence: Evidence, cause: str) -> Cost | None:
    """What the step "variance-shift" or "statistics" costs the deployed network.

    Statistics that were re-estimated without noise undo the one by the other: what the step costs counts only
    as far as re-estimating (again) would win it back.

    Args:
        evidence: What is known about the network.
        cause: Name of the step.
    """
    costs = [cost for cost in (cost_of(evidence, cause), removed_by_recalibration(evidence)) if cost]
    return min(costs, key=lambda cost: cost.delta, default=None)


def cost_words(cost: Cost) -> str:
    """What a cause costs, as a sentence without its full stop."""
    if cost.metric != "loss":
        return f"It changes the outputs by {100 * abs(cost.delta):.3g} % of their size"
    error = "" if cost.stderr is None else f" ± {cost.stderr:.2g}"
    if not cost.significant and not cost.by_heart:
        return (
            f"It costs nothing that could be measured: {cost.delta:+.2g}{error} of a loss of {cost.level:.3g}"
        )
    if cost.delta < 0:
        return f"It lowers the loss of {cost.level - cost.delta:.3g} by {-cost.delta:.3g}{error}"
    share = f" ({100 * cost.share:.3g} %)" if cost.share < 10 else ""
    return f"It adds {cost.delta:.3g}{error} to a loss of {cost.level:.3g}{share}"


def measured_recalibration(evidence: Evidence) -> Cure | None:
    """Re-estimating the running statistics without noise, where it was measured to lower the loss.

    ``measured`` holds the loss before and after, its difference and the standard error of that over batches.

    Returns:
        The cure; None where the loss does not fall beyond its error, or where no loss was measured on
        enough batches: statistics re-estimated from a few batches fit these very samples.
    """
    cost = removed_by_recalibration(evidence)
    if cost is None or not cost.decides or not cost.beyond_error:
        return None
    return replace(_safe(evidence), measured=_effect(evidence, cost))


def recalibration(evidence: Evidence, *, certain: bool = False) -> Cure | None:
    """The cure "recalibrate" for a finding about statistics, with all that is known about its effect.

    Args:
        evidence: What is known about the network.
        certain: Whether re-estimating cannot hurt where nothing was measured: the stored statistics are not
            numbers, never moved, or hold noise that is measured to be gone in evaluation.

    Returns:
        Safe with the loss that it gives, where that was measured to fall (`measured_recalibration`); None
        where a loss was measured and does not fall. Without a loss it is safe if `certain`, else unsafe.
    """
    cost = removed_by_recalibration(evidence)
    if cost is not None and cost.decides:
        return measured_recalibration(evidence)
    if not _finite_afterwards(evidence):
        return None
    if certain:
        return _safe(evidence)
    name = f"{_name(evidence)}, and compare the loss: what it does was not measured"
    return cure("recalibrate", name, "unsafe", noise=False)


def _finite_afterwards(evidence: Evidence) -> bool:
    """False where the loss is not a number even with statistics re-estimated without noise."""
    gap = evidence.measurement.gap if evidence.measurement else None
    return gap is None or gap.states.get("recalibrated", 0.0) is not None


def _safe(evidence: Evidence) -> Cure:
    return cure("recalibrate", _name(evidence), "safe", noise=False)


def _name(evidence: Evidence) -> str:
    noisy = evidence.train is None or evidence.train.noises
    return (
        f"re-estimate the running statistics{' with the noise off' if noisy else ''} (varshift.recalibrate)"
    )


def _effect(evidence: Evidence, cost: Cost) -> dict[str, float | int | str | None]:
    states = evidence.measurement.gap.states if evidence.measurement and evidence.measurement.gap else {}
    return {
        "metric": cost.metric,
        "before": states.get("eval"),
        "after": states.get("recalibrated"),
        "change": -cost.delta,
        "stderr": cost.stderr,
        "batches": cost.batches,
    }
