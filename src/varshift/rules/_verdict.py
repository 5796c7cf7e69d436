"""The verdict: whether evaluation is worse than training, by how much, and what explains it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal

from varshift.evidence import Evidence

from . import _thresholds as thresholds
from ._cost import Cost, costs_by_step
from ._finding import Finding

if TYPE_CHECKING:
    from varshift.probe import Gap

VerdictState = Literal["worse", "better", "same", "unknown"]

# What would tell the cause of a step that no finding explains.
EXPERIMENTS: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        "noise": (
            "Evaluate with the noise on (vs.mode(model, noise=True, norms='running')): if the loss comes "
            "back, the network relies on its noise.",
            "Train for a few epochs with all rates at 0: the step is gone if the noise causes it.",
        ),
        "function": (
            "Search the code for `self.training` and for overridden `train()` or `eval()` methods.",
            "Compare the outputs of every module in train() and in eval(), with dropout off.",
        ),
        "small-batch": (
            "Check again with batches four times as large: the step shrinks if batches are too small.",
            "Check again with every batch drawn at random: the step changes if batch mates matter.",
        ),
        "variance-shift": (
            "Recalibrate (varshift.recalibrate(model, loader)) and evaluate on held-out data.",
            "Check again with all rates at 0: the step is gone if the noise causes it.",
        ),
        "statistics": (
            "Recalibrate (varshift.recalibrate(model, loader)) and evaluate on held-out data.",
            "Check again with exactly the data and the preprocessing of training.",
        ),
        "transform": (
            "Compare a batch of each loader: range, mean and deviation of each channel, order of channels.",
            "Check again with the samples of deployment under the transforms of training.",
        ),
    }
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the user feels, in plain data.

    Attributes:
        state: Whether evaluation is ``"worse"`` or ``"better"`` than training or the ``"same"`` within its
            error; ``"unknown"`` where that was not measured.
        metric: What was compared, ``"loss"`` or ``"relative_l2"``; None where nothing was.
        train: The metric in training.
        deployed: The metric as deployed.
        delta: Change from training to deployment.
        stderr: Its standard error over batches.
        step: The step of the gap that carries the verdict: the largest in its direction. Where evaluation is
            not worse, the largest step that makes it worse than it could be, if one is beyond its error.
        step_delta: What that step changes.
        code: Code of the finding that explains this step; None where none does.
        unexplained: Share of everything that makes evaluation worse which no finding explains; None where
            nothing makes it worse.
        good_mode: The mode in which the network is good: ``"train"`` or ``"eval"``; None where both are, or
            where it is not known. Noise does not count: that training is worse with noise on is no fault.
        experiments: What would tell the cause, where no finding does.
    """

    state: VerdictState
    metric: str | None = None
    train: float | None = None
    deployed: float | None = None
    delta: float | None = None
    stderr: float | None = None
    step: str | None = None
    step_delta: float | None = None
    code: str | None = None
    unexplained: float | None = None
    good_mode: Literal["train", "eval"] | None = None
    experiments: tuple[str, ...] = field(default=())


def judge(evidence: Evidence, findings: Sequence[Finding]) -> Verdict:
    """The verdict on a network.

    Args:
        evidence: What was measured.
        findings: What the rules found, in order.
    """
    gap = evidence.measurement.gap if evidence.measurement else None
    if gap is None:
        return Verdict("unknown")
    costs = costs_by_step(gap)
    harmful = {cause: cost for cause, cost in costs.items() if cost.significant and cost.delta > 0}
    by_step = _explained(findings, harmful)
    change = gap.change("train", gap.last)
    delta, stderr = change or (None, None)
    state = _state(gap, delta, stderr)
    step = _carrying(state, costs, harmful)
    code = by_step.get(step) if step else None
    total = sum(cost.delta for cost in harmful.values())
    left = sum(cost.delta for cause, cost in harmful.items() if cause not in by_step)
    return Verdict(
        state=state,
        metric=gap.metric,
        train=gap.states.get("train"),
        deployed=gap.states.get(gap.last),
        delta=delta,
        stderr=stderr,
        step=step,
        step_delta=costs[step].delta if step else None,
        code=code,
        unexplained=left / total if total > 0 else None,
        good_mode=_good_mode(evidence, gap),
        experiments=EXPERIMENTS[step] if step in harmful and code is None else (),
    )


def _explained(findings: Sequence[Finding], harmful: Mapping[str, Cost]) -> dict[str, str]:
    """The steps that findings answer for, each with the code of the first one.

    A finding that costs more than its own step answers for others too: small batches, say, for what their
    statistics add in the next step.
    """
    by_step: dict[str, str] = {}
    for finding in findings:
        if finding.step is not None:
            by_step.setdefault(finding.step, finding.code)
    for finding in findings:
        if finding.step is None or finding.cost is None:
            continue
        own = harmful.get(finding.step)
        rest = finding.cost - (own.delta if own is not None else 0.0)
        for cause, cost in harmful.items():
            if cause not in by_step and rest >= cost.delta / 2:
                by_step[cause] = finding.code
                rest -= cost.delta
    return by_step


def _state(gap: Gap, delta: float | None, stderr: float | None) -> VerdictState:
    train, deployed = gap.states.get("train"), gap.states.get(gap.last)
    if gap.metric != "loss":
        # Outputs without a loss: no one can say which are better, only whether they are the same.
        far = [abs(gap.states.get(name) or 0.0) > thresholds.LOSS_SHARE for name in ("clean_eval", "eval")]
        return "unknown" if any(far) or deployed is None else "same"
    if deployed is None or train is None or delta is None:
        return "worse" if train is not None and deployed is None else "unknown"
    level = min(abs(train), abs(deployed))
    floor = thresholds.LOSS_SHARE * level
    if gap.accuracy is not None and abs(delta) <= thresholds.APART * level:
        floor = max(floor, thresholds.LOSS_NATS)  # of data learnt by heart only a large share counts
    if abs(delta) <= floor:
        return "same"
    if stderr is None:
        # One batch says nothing about its own error: only what is large beyond any doubt counts.
        return "unknown" if abs(delta) < level else "worse" if delta > 0 else "better"
    if abs(delta) <= thresholds.LOSS_STANDARD_ERRORS * stderr:
        # Within its error, and the error is small enough to say so.
        return "same" if stderr <= thresholds.COST_WARNING * level else "unknown"
    return "worse" if delta > 0 else "better"


def _carrying(state: VerdictState, costs: Mapping[str, Cost], harmful: Mapping[str, Cost]) -> str | None:
    if harmful:
        return max(harmful, key=lambda cause: harmful[cause].delta)
    if state == "worse" and costs:
        return max(costs, key=lambda cause: costs[cause].delta)
    if state == "better" and costs:
        return min(costs, key=lambda cause: costs[cause].delta)
    return None


def _good_mode(evidence: Evidence, gap: Gap) -> Literal["train", "eval"] | None:
    before = "clean" if "clean" in gap.states else "clean_eval"
    quiet, shipped = gap.states.get(before), gap.states.get("eval")
    if gap.metric != "loss" or quiet is None:
        return None
    if shipped is None or not math.isfinite(shipped):
        return "train"
    change = gap.change(before, "eval")
    if change is None or change[1] is None:
        return None
    delta, stderr = change
    if abs(delta) <= max(
        thresholds.LOSS_STANDARD_ERRORS * (stderr or 0.0), thresholds.COST_WARNING * min(quiet, shipped)
    ):
        return None
    return "train" if delta > 0 else "eval"
