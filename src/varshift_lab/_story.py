"""What happened in a run of the demo, in plain words that follow its numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from varshift import Cured, Report
    from varshift_lab._demo import Outcome
    from varshift_lab.training import Evaluation

# A change counts from two standard errors on; below that it may be chance.
_ERRORS = 2.0


@dataclass(frozen=True, slots=True)
class Change:
    """Change of the loss of the same samples between two states.

    Attributes:
        difference: Mean difference, second minus first.
        error: Its standard error over samples.
    """

    difference: float
    error: float

    @property
    def direction(self) -> int:
        """1 when the loss rose, -1 when it fell, 0 when the change is within two standard errors."""
        if abs(self.difference) <= _ERRORS * self.error:
            return 0
        return 1 if self.difference > 0 else -1


def change(first: Evaluation, second: Evaluation) -> Change:
    """Compares two evaluations of the same samples in the same order, sample by sample.

    Raises:
        ValueError: If they have different numbers of samples.
    """
    if len(first.losses) != len(second.losses):
        raise ValueError(
            f"first has {len(first.losses)} samples, second {len(second.losses)}: they must agree."
        )
    differences = second.losses.double() - first.losses.double()
    count = len(differences)
    error = float(differences.std()) / math.sqrt(count) if count > 1 else math.inf
    return Change(float(differences.mean()), error)


def in_training(report: Report) -> tuple[float, float] | None:
    """Loss and accuracy in ``train()`` as the check measured them, None when it could not."""
    gap = report.gap
    loss = None if gap is None else gap.states["train"]
    if gap is None or gap.accuracy is None or loss is None:
        return None
    return loss, gap.accuracy["train"]


def wrong(evaluation: Evaluation) -> int:
    """Number of samples classified wrongly."""
    return round((1 - evaluation.accuracy) * len(evaluation.losses))


def tell(before: Outcome, after: Outcome, healthy: Outcome, cured: Cured, seconds: float) -> list[str]:
    """The story of a run, one paragraph each.

    Args:
        before: The sick network as trained.
        after: The cured copy of it.
        healthy: The healthy network.
        cured: What the cure brought.
        seconds: Time that it took, with the check of the result.
    """
    return [
        _harm(before),
        _cause(before.report),
        _cure(before, after, cured, seconds),
        _second_check(after.report),
        _twin(before, after, healthy),
    ]


def _harm(before: Outcome) -> str:
    trained = in_training(before.report)
    evaluated = (
        f"in eval() {_percent(before.training.accuracy)} at a loss of {_loss(before.training.loss)}; of the "
        f"held-out digits it gets {_percent(before.held_out.accuracy)}."
    )
    if trained is None:
        return f"Of its training digits the sick network gets {evaluated}"
    loss, accuracy = trained
    text = (
        f"Of the digits it was trained on, and with the same weights, the sick network gets "
        f"{_percent(accuracy)} right in train() at a loss of {_loss(loss)}, "
        f"{evaluated} "
    )
    rise, error = before.training.loss - loss, _gap_error(before.report)
    if rise > _ERRORS * error:
        return text + "In eval() there is no dropout, which ought to make it better; it made it worse."
    if rise > -_ERRORS * error:
        return (
            text + "In eval() there is no dropout, which ought to make it better; within chance, it is not."
        )
    return text + (
        "So eval() is better, as it should be without dropout; whether it is as good as it could be shows "
        "when the statistics are replaced."
    )


def _gap_error(report: Report) -> float:
    """Standard error of the loss in ``eval()`` minus that in ``train()``, its steps taken as independent."""
    errors = [] if report.gap is None else [step.stderr for step in report.gap.steps]
    return math.sqrt(sum(math.inf if error is None else error**2 for error in errors))


def _cause(report: Report) -> str:
    gap = report.gap
    if gap is None:
        return "The gap between train() and eval() could not be split into causes."
    causes = {
        "variance-shift": "variance shift (statistics learned with dropout, used without)",
        "statistics": "statistics that lag behind the weights",
    }
    told = " and ".join(
        f"{causes[step.cause]} {step.delta:+.3f}"
        + ("" if step.stderr is None else f" ± {_error(step.stderr)}")
        for step in gap.steps
        if step.cause in causes and step.delta is not None
    )
    if not told:
        return "The gap between train() and eval() could not be split into causes."
    worst = max(
        (layer for layer in report.layers if layer.shift), key=lambda row: row.shift or 0, default=None
    )
    where = (
        f" The norm that is worst off, {worst.name}, sees {worst.ratio:.2f} times the variance it has stored."
        if worst is not None and worst.ratio is not None
        else ""
    )
    return f"What the check holds responsible, in loss on the training digits: {told}.{where}"


def _cure(before: Outcome, after: Outcome, cured: Cured, seconds: float) -> str:
    if not cured.changes:
        return f"varshift.fix took {seconds:.1f} s and changed nothing."
    training = change(before.training, after.training)
    held_out = change(before.held_out, after.held_out)
    samples = len(before.held_out.losses)
    moved = f"{held_out.difference:+.3f} ± {_error(held_out.error)}"
    start = (
        f"varshift.fix ({_cures(cured)}) took {seconds:.1f} s, the check of the result included"
        f"{', and changed no weight' if _keeps_weights(cured) else ''}. On the held-out digits the loss "
        f"went from {_loss(before.held_out.loss)} to {_loss(after.held_out.loss)} ({moved}), and "
        f"{wrong(after.held_out)} of {samples} are wrong instead of {wrong(before.held_out)}. "
    )
    if held_out.direction < 0:
        return start + "So it helped, on data that neither training nor the cure has seen."
    if held_out.direction > 0:
        return start + "That is worse: the cure did harm in this run."
    if training.direction < 0:
        return start + (
            f"That is within chance; on the training digits the loss fell by {-training.difference:.3f} ± "
            f"{_error(training.error)}."
        )
    return start + "That is within chance, so the cure did not help in this run."


def _cures(cured: Cured) -> str:
    return ", ".join(dict.fromkeys(change.cure for change in cured.changes))


def _keeps_weights(cured: Cured) -> bool:
    return all(change.method == "statistics" for change in cured.changes)


def _second_check(report: Report) -> str:
    if not report.findings:
        return "Checked again, the cured network has no finding left."
    return f"Checked again, the cured network still has {_counted(report)}."


def _twin(before: Outcome, after: Outcome, healthy: Outcome) -> str:
    text = "The healthy twin has its dropout where no norm comes after it. "
    text += (
        f"The check has {_counted(healthy.report)}"
        if healthy.report.findings
        else "The check finds nothing on it"
    )
    errors, samples = wrong(healthy.held_out), len(healthy.held_out.losses)
    text += (
        f", and {errors} of the {samples} held-out digits are wrong (loss {_loss(healthy.held_out.loss)}). "
    )
    sick = change(healthy.held_out, before.held_out).direction
    cured = change(healthy.held_out, after.held_out).direction
    compared = {
        (1, 0): "As trained, the sick network is worse than that; cured, it is as good within chance.",
        (
            1,
            1,
        ): "The sick network is worse than that as trained, and cured it still is: part of the harm "
        "is in its weights.",
        (1, -1): "As trained, the sick network is worse than that; cured, it is better.",
        (0, 0): "The sick network is as good within chance, as trained and cured.",
    }
    return text + compared.get(
        (sick, cured),
        f"As trained, the sick network is {_judged(sick)}; cured, it is {_judged(cured)}.",
    )


def _judged(direction: int) -> str:
    return {1: "worse", 0: "as good within chance", -1: "better"}[direction]


def _counted(report: Report) -> str:
    """``2 errors and 1 warning (VS101, VS207)``."""
    counts: dict[str, int] = {}
    for finding in report.findings:
        counts[finding.severity] = counts.get(finding.severity, 0) + 1
    # "advice" has no plural
    words = [
        f"{number} {severity}" + ("s" if number > 1 and severity != "advice" else "")
        for severity, number in counts.items()
    ]
    return f"{' and '.join(words)} ({', '.join(report.findings_by_code)})"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


def _loss(value: float) -> str:
    return f"{value:.3f}"


def _error(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else f"{value:.1g}"
