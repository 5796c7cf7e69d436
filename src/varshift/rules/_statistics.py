"""Running statistics that never moved, or that the data never reach (VS201)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from varshift.evidence import Evidence

from . import _thresholds as thresholds
from ._cost import cost_of, graded, graver, price
from ._cures import cure
from ._finding import Cure, Finding, Severity
from ._places import norm_places
from ._reading import known, learns, listed, norms_in_order, positive, quoted, without_none
from ._recalibration import recalibration
from ._registry import Rule, register
from ._stored import deviation, deviation_words, ratio_severity, worst_first

if TYPE_CHECKING:
    from varshift.model import NormFacts

_LOAD_WEIGHTS = cure("load-weights", "load the trained weights", "safe")
_LOAD_STATISTICS = cure(
    "load-weights", "load a checkpoint that holds the statistics, with strict=True", "safe"
)


@register
class StatisticsNeverMoved(Rule):
    """Running statistics are still those of a new norm, or the data never reach the norm.

    ## What it does

    Finds norms whose running mean is exactly 0 and running variance exactly 1 in every channel although
    training updates them, and norms that no batch of the data arrives at. Where that is true of all norms
    and their weights are new too, it says once that the network is untrained.

    ## Why it matters

    Such a norm does nothing in evaluation but scale and shift, while in training it normalises. The usual
    causes: weights that were never loaded, a checkpoint without buffers loaded with `strict=False`, a loss
    that runs a functional copy of the network, averaged weights whose buffers were never computed, a norm
    put in after training, a part of the network that training never ran. A norm that the data do not reach
    keeps whatever statistics it has, through recalibration too.

    ## How it is measured

    Certain, from the buffers; no statistics of real data are exactly 0 and 1. Weights that are the same in
    every channel, biases of exactly 0 and no batch counted mean that nothing was ever trained; of norms
    without weights and biases, that less than half of the answers are right with fresh statistics. Where a
    loss was measured, the step "statistics" of the gap sets the severity: an error from a tenth of the loss,
    a warning from a twentieth. Elsewhere the input in evaluation is compared with the statistics: a folded
    variance ratio of 1.5 or a mean half a standard deviation off makes it an error, otherwise it is a
    warning. An untrained network is at least a warning where data were passed, and advice without. A norm
    that the data do not reach costs nothing on them: advice.

    ## Known limits

    A frozen norm that holds 0 and 1 computes the same in both modes and is let pass; without a capture a norm
    of an unknown class counts as one that learns. A norm in a branch that these data happen not to take
    counts as never reached.

    ## Example

    ```python
    model.load_state_dict(averaged_parameters, strict=False)  # running_mean and running_var are missing
    ```

    ## Cure

    ```python
    varshift.recalibrate(model, loader)
    ```

    Or load the checkpoint with `strict=True` and supply what is missing.

    ## Cure safety

    Recalibration is offered as safe unless the loss was measured to suffer from it: the weights stay as they
    are.

    ## References

    - S. Ioffe, C. Szegedy, "Batch Normalization", ICML 2015, section 3.1, for the statistics of inference.
    """

    code = "VS201"
    name = "statistics-never-moved"
    needs = ("modules",)
    uses = ("capture", "measurement")

    def applies(self, evidence: Evidence) -> Iterator[Finding]:
        """Yields one finding for the norms that never moved, and one for those that are never reached."""
        names = [name for name in norms_in_order(evidence) if learns(evidence, name)]
        layers = evidence.measured
        unreached = [name for name in names if name in layers and not layers[name].reached]
        reached = [name for name in names if name not in unreached]
        never = [name for name in reached if evidence.norms[name].never_moved]
        if never:
            yield self._never_moved(evidence, worst_first(evidence, never), everywhere=never == reached)
        if unreached:
            yield self._never_reached(evidence, unreached)

    def _never_moved(self, evidence: Evidence, names: Sequence[str], *, everywhere: bool) -> Finding:
        facts = [evidence.norms[name] for name in names]
        untrained = everywhere and _untrained(evidence, facts)
        cost = cost_of(evidence, "statistics")
        severity = graded(cost, self._by_ratio(evidence, names), confidence="certain") or "advice"
        if untrained:
            severity = graver(severity, "warning") if evidence.measurement else "advice"
        layer = evidence.measured.get(names[0])
        figures = {"ratio": positive(layer.ratio), "mean_offset": known(layer.mean_offset)} if layer else {}
        return Finding(
            code=self.code,
            severity=severity,
            confidence="certain",
            sites=norm_places(evidence, names),
            message=self._untrained(names) if untrained else self._message(evidence, names, everywhere),
            evidence={
                "count": len(names),
                "of": len(evidence.norms),
                "everywhere": everywhere,
                "untrained": untrained,
                "batches_tracked": facts[0].batches_tracked,
                **without_none(figures),
            },
            cures=(_LOAD_WEIGHTS,) if untrained else self._cures(evidence, everywhere),
            step="statistics",
            cost=price(cost),
        )

    def _by_ratio(self, evidence: Evidence, names: Sequence[str]) -> Severity:
        sizes = [ratio_severity(*deviation(evidence, name)) for name in names]
        return "error" if "error" in sizes else "warning"

    def _untrained(self, names: Sequence[str]) -> str:
        return (
            f"Did you forget to load the weights? {listed(names)}: all norms hold statistics of exactly 0 "
            "and 1, and weights and biases that training never moved."
        )

    def _message(self, evidence: Evidence, names: Sequence[str], everywhere: bool) -> str:
        words = deviation_words(*deviation(evidence, names[0]))
        start = f"In evaluation the norm {quoted(names[0])} sees {words}: its" if words else "The"
        whose = "" if words else f" of {listed(names)}"
        text = f"{start} running statistics{whose} are exactly 0 and 1, they never moved"
        if everywhere and len(names) > 1:
            text += f", like those of all {len(names)} norms"
        elif len(names) > 1 and words:
            text += f", like those of {listed(names[1:])}"
        return f"{text}."

    def _cures(self, evidence: Evidence, everywhere: bool) -> tuple[Cure, ...]:
        learn = recalibration(evidence, certain=True)
        return (*((learn,) if learn else ()), *((_LOAD_STATISTICS,) if everywhere else ()))

    def _never_reached(self, evidence: Evidence, names: Sequence[str]) -> Finding:
        only_training = evidence.eval is not None and all(
            name not in evidence.eval_norms and name in evidence.train_norms for name in names
        )
        text = f"The data never reach {listed(names)} in evaluation"
        places = norm_places(evidence, names)
        remedy = "check with data that reach it, or remove it if nothing does"
        return Finding(
            code=self.code,
            severity="advice",
            confidence="measured",
            sites=places,
            message=f"{text}{' (training alone runs them)' if only_training else ''}.",
            evidence={
                "reached": False,
                "count": len(names),
                "never_moved": sum(evidence.norms[name].never_moved for name in names),
            },
            cures=(cure("reach-norm", remedy, "safe", places[0].id),),
        )


def _untrained(evidence: Evidence, facts: Sequence[NormFacts]) -> bool:
    """Whether norms that never moved have weights that never moved, too."""
    moved = [one.affine_moved for one in facts]
    if any(one.batches_tracked for one in facts) or True in moved:
        return False
    if False in moved or evidence.measurement is None:
        return True
    # Norms without weights tell nothing: a network that answers most samples right was trained.
    accuracy = evidence.measurement.gap.accuracy if evidence.measurement.gap else None
    return accuracy is not None and accuracy.get("recalibrated", 1.0) < thresholds.TRAINED_ACCURACY
