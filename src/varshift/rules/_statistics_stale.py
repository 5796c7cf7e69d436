"""Running statistics that are not those of the training data (VS202)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from varshift.evidence import Evidence
from varshift.theory import fold

from . import _thresholds as thresholds
from ._cost import Cost, cost_of, graded, price
from ._cures import cure
from ._finding import Finding, Severity
from ._places import norm_places
from ._reading import known, learns, norms_in_order, others, positive, quoted
from ._recalibration import cost_words, deployed_cost, recalibration
from ._registry import Rule, register
from ._staleness import Staleness, staleness_of
from ._stored import deviation, deviation_words, ratio_severity, size_of, worst_first
from ._watched import trailing_statistics

if TYPE_CHECKING:
    from varshift.probe import LayerMeasurement

_RECALIBRATE_FROZEN = cure(
    "recalibrate",
    "re-estimate the statistics on these data, and train what follows again",
    "unsafe",
    noise=False,
)


@register
class StaleStatistics(Rule):
    """Running statistics are stale or wrong: they are not what training produces on these data.

    ## What it does

    Compares the running statistics as shipped with those of the same weights, in training mode, on the data
    given, and reports, once and the worst norm first, the norms where they differ by more than sampling
    noise.

    ## Why it matters

    Running statistics can be wrong without any dropout: averaged over weights that moved on since, learnt
    on other data or under other augmentation, taken from another checkpoint, averaged over too few batches,
    or overwritten. Training does not notice, because it does not use them; evaluation does.

    ## How it is measured

    `stale_ratio` is the variance in training mode over the running variance, `stale_mean` the offset of the
    means in standard deviations. Both count when they exceed three standard errors, the noise of the moving
    average itself included, and when the deployed network shows it too: statistics re-estimated without
    noise differ from those of training on purpose.

    Where a loss was measured on four batches or more, what the statistics cost sets the severity: an error
    from a tenth of the loss, a warning from a twentieth, else advice. The cost is the step "statistics" of
    the gap, or, where that is less, what re-estimating without noise would win. A cost of a twentieth or more
    is reported, at the norm that is furthest off, even where every norm is within its error (unless the
    variance shift costs three times as much: with a shifted signal small differences cost more). Without a
    loss a folded ratio of 1.1 or an offset of 0.1 is a warning, 1.5 or 0.5 an error.

    Not where evaluation does not use the statistics (VS401); never moved or broken ones (VS201, VS203)
    account for the loss where there are any. Where the loss would rise, VS210 speaks.

    For a frozen norm the input in evaluation is compared with its statistics, and a large difference (1.5
    or 0.5) is advice.

    In a watched training (`varshift.watch`) the running values at the start and the end of a stretch of
    n updates give the mean and the variance of its batches: a warning where these are 1.5 times the running
    variance or .5 standard deviations away for three stretches in a row, the start of training left out.

    ## Known limits

    The data must be those of training, shuffled and augmented alike: on other data the difference is one of
    domain. With fewer than four batches only differences far beyond the noise of the samples are reported,
    and none that only the loss shows.

    ## Example

    ```python
    averaged = torch.optim.swa_utils.AveragedModel(model)  # new weights, the old buffers
    evaluate(averaged)
    ```

    ## Cure

    ```python
    varshift.recalibrate(model, loader)
    ```

    ## Cure safety

    Safe where the loss was measured to fall: the weights stay as they are, and the handle can undo it. Unsafe
    where no loss was measured: weights that were trained on the stored statistics suffer from others.

    ## References

    - Y. Wu, J. Johnson, "Rethinking 'Batch' in BatchNorm", arXiv 2105.07576, section 3.
    - S. Ioffe, C. Szegedy, "Batch Normalization", ICML 2015, section 3.1.
    """

    code = "VS202"
    name = "stale-statistics"
    needs = ("modules",)
    needs_one_of = ("measurement", "history")
    uses = ("capture",)

    def applies(self, evidence: Evidence) -> Iterator[Finding]:
        """Yields one finding for all stale norms, and one for frozen norms far from these data."""
        measurement = evidence.measurement
        if measurement is None:
            yield from trailing_statistics(evidence, self.code)
            return
        elsewhere = _deployed_on_batches(evidence)  # the loss then tells nothing about running statistics
        frozen: list[str] = []
        candidates: list[Staleness] = []
        for name in norms_in_order(evidence):
            facts, layer = evidence.norms[name], evidence.measured.get(name)
            if layer is None or not layer.reached:
                continue
            if not learns(evidence, name):
                frozen += [] if facts.never_moved else [name]  # a frozen identity holds no statistics at all
            elif facts.never_moved or facts.nonfinite or facts.negative:
                elsewhere = True  # VS201 or VS203 says it, and it accounts for the loss as well
            elif (staleness := staleness_of(facts, layer, measurement)) is not None:
                candidates.append(staleness)
        cost = None if elsewhere else deployed_cost(evidence, "statistics")
        yield from self._stale(evidence, candidates, cost)
        yield from self._frozen(evidence, frozen)

    def _stale(
        self, evidence: Evidence, candidates: Sequence[Staleness], cost: Cost | None
    ) -> Iterator[Finding]:
        stale = [one for one in candidates if one.severity and _deployed_too(evidence.measured[one.name])]
        stale.sort(key=lambda one: one.size, reverse=True)
        severities = {one.severity for one in stale}
        by_ratio: Severity | None = "error" if "error" in severities else "warning" if stale else None
        severity = graded(cost, by_ratio)
        if severity is None or not candidates or (not stale and _is_echo(evidence, cost)):
            return
        shown = stale or [max(candidates, key=lambda one: _nominal(evidence.measured[one.name]))]
        worst, layer = shown[0], evidence.measured[shown[0].name]
        words = deviation_words(layer.stale_ratio, known(layer.stale_mean))
        text = f"Training on these data gives the norm {quoted(worst.name)} {words}"
        if len(shown) > 1:
            text += f"; {others((one.name for one in shown[1:]), 'is stale', 'are stale')}"
        if cost is not None:
            text += f". {cost_words(cost)}"
        remedy = recalibration(evidence)
        yield Finding(
            code=self.code,
            severity=severity,
            confidence="measured",
            sites=norm_places(evidence, [one.name for one in shown]),
            message=f"{text}.",
            evidence={
                "count": len(stale),
                "stale_ratio": known(layer.stale_ratio),
                "stale_error": known(worst.variance_error),
                "stale_mean": known(layer.stale_mean),
                "stale_mean_error": known(worst.mean_error),
                "batches_tracked": evidence.norms[worst.name].batches_tracked,
                **({"loss_step": cost.delta, "loss_step_stderr": cost.stderr} if cost else {}),
            },
            cures=() if remedy is None else (remedy,),
            step="statistics",
            cost=price(cost),
        )

    def _frozen(self, evidence: Evidence, names: Sequence[str]) -> Iterator[Finding]:
        far = [name for name in names if ratio_severity(*deviation(evidence, name)) == "error"]
        if not far:
            return
        far = worst_first(evidence, far)
        ratio, offset = deviation(evidence, far[0])
        more = f", and {others(far[1:], 'is far off', 'are far off')}" if len(far) > 1 else ""
        yield Finding(
            code=self.code,
            severity="advice",
            confidence="measured",
            sites=norm_places(evidence, far),
            message=(
                f"On these data the frozen norm {quoted(far[0])} sees {deviation_words(ratio, offset)}{more}."
            ),
            evidence={"ratio": ratio, "mean_offset": offset, "frozen": True, "count": len(far)},
            cures=(_RECALIBRATE_FROZEN,),
        )


def _deployed_too(layer: LayerMeasurement) -> bool:
    """Whether the deployed network suffers: statistics re-estimated on purpose fit it."""
    ratio, control = positive(layer.ratio), positive(layer.control_ratio)
    fits = ratio is not None and control is not None and fold(ratio / control) < thresholds.SHIFT_WARNING
    return not (fits and (known(layer.mean_offset) or 0.0) < thresholds.OFFSET_WARNING)


def _is_echo(evidence: Evidence, cost: Cost | None) -> bool:
    """Whether a step that no norm shows is small next to a variance shift, which makes it costly."""
    shift = cost_of(evidence, "variance-shift")
    if cost is None or shift is None or not shift.significant:
        return False
    return cost.delta < thresholds.ECHO_SHARE * shift.delta


def _nominal(layer: LayerMeasurement) -> float:
    return size_of(positive(layer.stale_ratio), known(layer.stale_mean))


def _deployed_on_batches(evidence: Evidence) -> bool:
    """Whether some norm normalises with batch statistics in evaluation, whatever statistics it stores."""
    stuck = evidence.modes.stuck_training if evidence.modes else {}
    if any(name in evidence.norms for name in stuck):
        return True
    sites = evidence.eval.norms if evidence.eval else ()
    return any(site.batch_statistics and site.kind != "instance_norm" for site in sites)
