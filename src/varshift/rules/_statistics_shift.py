"""Running statistics against the signal: stale or wrong (VS202), and shifted by noise (VS207)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from varshift.evidence import Evidence
from varshift.theory import fold

from . import _thresholds as thresholds
from ._cures import cure
from ._finding import Finding, Severity
from ._places import norm_place
from ._reading import (
    NAMED,
    RECALIBRATE,
    Shift,
    known,
    learns,
    measured_shift,
    noise_upstream,
    norms_in_order,
    positive,
    quoted,
    shift_severity,
    without_none,
)
from ._registry import Rule, register

if TYPE_CHECKING:
    from varshift._sites import SiteId
    from varshift.model import NormFacts
    from varshift.probe import Gap, GapStep, LayerMeasurement, Measurement

_MOVE_NOISE = cure("move-noise", "move the noise after the last norm, and train again", "unsafe", to="head")
_RECALIBRATE_UNSEEN = cure(
    "recalibrate",
    "re-estimate the running statistics: with data (varshift.recalibrate(model, loader)), or without "
    "(varshift.recalibrate(model))",
    "safe",
    noise=False,
)
_RECALIBRATE_STALE = cure(
    "recalibrate", "re-estimate the running statistics (varshift.recalibrate)", "safe", noise=False
)
_RECALIBRATE_FROZEN = cure(
    "recalibrate",
    "re-estimate the statistics on these data, and train what follows again",
    "unsafe",
    noise=False,
)


@dataclass(frozen=True, slots=True)
class _Staleness:
    """How far a norm's statistics are from those that training produces on the same data.

    Attributes:
        variance: Folded ratio of the variances, 1 where it is within its error.
        offset: Offset of the mean in standard deviations, 0 where it is within its error.
        variance_error: Standard error of the ratio, the moving average's own noise included.
        mean_error: Likewise of the offset.
    """

    variance: float
    offset: float
    variance_error: float
    mean_error: float

    @property
    def severity(self) -> Severity | None:
        if self.variance >= thresholds.SHIFT_ERROR or self.offset >= thresholds.OFFSET_ERROR:
            return "error"
        if self.variance >= thresholds.SHIFT_WARNING or self.offset >= thresholds.OFFSET_WARNING:
            return "warning"
        return None

    @property
    def size(self) -> float:
        """One number to compare norms by, in units of the warning."""
        return max(
            math.log(self.variance) / math.log(thresholds.SHIFT_WARNING),
            self.offset / thresholds.OFFSET_WARNING,
        )


@register
class StaleStatistics(Rule):
    """Running statistics are stale or wrong: they are not what training produces on these data.

    ## What it does

    Compares the running statistics as shipped with those of the same weights, in training mode, on the data
    given, and reports the norms where they differ by more than sampling noise.

    ## Why it matters

    Running statistics can be wrong without any dropout: averaged over weights that moved on since, learnt
    on other data or under other augmentation, taken from another checkpoint, averaged over too few batches,
    or overwritten. Training does not notice, because it does not use them; evaluation does.

    ## How it is measured

    `stale_ratio` is the variance in training mode over the running variance, `stale_mean` the offset of the
    means in standard deviations. Both count when they exceed three standard errors, the noise of the moving
    average itself included, and when the deployed network shows it too: statistics re-estimated without
    noise differ from those of training on purpose. A ratio folded of 1.1 or an offset of 0.1 is a warning,
    1.5 or 0.5 an error. A warning becomes advice where the loss surely does not fall by one per cent when the
    statistics are re-estimated (step "statistics" of the gap and two of its standard errors). If no norm
    stands out but the loss does fall, by more than two standard errors and one per cent, the norm furthest
    off is named: a warning from a tenth of the loss, else advice. Not where evaluation does not use the
    statistics (VS401), or where never moved or broken ones account for the loss (VS201, VS203).

    For a frozen norm the input in evaluation is compared with its statistics, and a large difference (1.5
    or 0.5) is advice.

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

    Safe: the weights stay as they are, and the handle can undo it.

    ## References

    - Y. Wu, J. Johnson, "Rethinking 'Batch' in BatchNorm", arXiv 2105.07576, section 3.
    - S. Ioffe, C. Szegedy, "Batch Normalization", ICML 2015, section 3.1.
    """

    code = "VS202"
    name = "stale-statistics"
    needs = ("modules", "measurement")
    uses = ("capture",)

    def applies(self, evidence: Evidence) -> Iterator[Finding]:
        """Yields one finding per norm, or one at the worst norm where only the loss shows it."""
        measurement = evidence.measurement
        if measurement is None:
            return
        found = _deployed_on_batches(evidence)  # the loss then tells nothing about running statistics
        harmless = _harmless(measurement.gap)
        candidates: list[tuple[_Staleness, NormFacts, LayerMeasurement]] = []
        for name in norms_in_order(evidence):
            facts, layer = evidence.norms[name], evidence.measured.get(name)
            if layer is None or not layer.reached:
                continue
            if facts.never_moved or facts.nonfinite or facts.negative:
                found = True  # VS201 or VS203 says it, and it accounts for the loss as well
            elif not learns(evidence, name):
                yield from self._frozen(evidence, facts, layer)
            elif (staleness := _staleness(facts, layer, measurement)) is not None:
                candidates.append((staleness, facts, layer))
                if staleness.severity and self._deployed_too(layer):
                    found = True
                    severity = staleness.severity
                    if severity == "warning" and harmless:
                        severity = "advice"
                    yield self._finding(evidence, facts, layer, severity, staleness)
        step = _loss_step(measurement.gap)
        if step is not None and candidates and not found and measurement.batches >= thresholds.FEW_BATCHES:
            staleness, facts, layer = max(candidates, key=lambda item: _nominal_size(item[2]))
            yield self._finding(
                evidence, facts, layer, _step_severity(measurement.gap, step), staleness, step
            )

    def _deployed_too(self, layer: LayerMeasurement) -> bool:
        """Whether the deployed network suffers: statistics re-estimated on purpose fit it."""
        ratio, control = positive(layer.ratio), positive(layer.control_ratio)
        fits = ratio is not None and control is not None and fold(ratio / control) < thresholds.SHIFT_WARNING
        return not (fits and (known(layer.mean_offset) or 0.0) < thresholds.OFFSET_WARNING)

    def _finding(
        self,
        evidence: Evidence,
        facts: NormFacts,
        layer: LayerMeasurement,
        severity: Severity,
        staleness: _Staleness,
        step: GapStep | None = None,
    ) -> Finding:
        text = (
            f"training produces {layer.stale_ratio:.3g} times the variance that the norm "
            f"{quoted(facts.name)} holds, and a mean {layer.stale_mean or 0.0:.2g} standard deviations off"
        )
        if step is not None:
            text = f"the loss falls by {step.delta or 0.0:.3g} when they are re-estimated; {text}"
        return Finding(
            code=self.code,
            severity=severity,
            confidence="measured",
            sites=(norm_place(evidence, facts.name),),
            message=f"The running statistics are stale: {text}.",
            evidence={
                "stale_ratio": known(layer.stale_ratio),
                "stale_error": known(staleness.variance_error),
                "stale_mean": known(layer.stale_mean),
                "stale_mean_error": known(staleness.mean_error),
                "batches_tracked": facts.batches_tracked,
                **({"loss_step": step.delta, "loss_step_stderr": step.stderr} if step else {}),
            },
            cures=(_RECALIBRATE_STALE,),
        )

    def _frozen(self, evidence: Evidence, facts: NormFacts, layer: LayerMeasurement) -> Iterator[Finding]:
        ratio, offset = positive(layer.ratio), known(layer.mean_offset) or 0.0
        if ratio is None or (fold(ratio) < thresholds.SHIFT_ERROR and offset < thresholds.OFFSET_ERROR):
            return
        yield Finding(
            code=self.code,
            severity="advice",
            confidence="measured",
            sites=(norm_place(evidence, facts.name),),
            message=(
                f"The frozen norm {quoted(facts.name)} sees {ratio:.3g} times the variance of its statistics "
                f"on these data, and a mean {offset:.2g} standard deviations off."
            ),
            evidence={"ratio": ratio, "mean_offset": offset, "frozen": True},
            cures=(_RECALIBRATE_FROZEN,),
        )


@register
class VarianceShift(Rule):
    """A variance shift is measured at a norm: it learned on a noisy signal and is deployed on a clean one.

    ## What it does

    Reports every norm whose input in evaluation has another variance than its statistics hold, as far as
    the noise in the network accounts for it. Without data the shift is predicted.

    ## Why it matters

    The norm's output in evaluation is scaled by the square root of the ratio, and offset where means moved.
    The layers behind never saw such inputs, and the errors of successive norms multiply. This is what makes
    a network good in `train()` and bad in `eval()`.

    ## How it is measured

    `ratio` is the variance of the norm's input in evaluation over its running variance, both as means over
    the channels; `control_ratio` is the same after re-estimating the statistics without noise: what depth
    and small batches do by themselves. `excess = ratio / control_ratio`, folded to at least 1, is a warning
    from 1.1 and an error from 1.5. The shift counts as the noise's only as far as `fresh_ratio` (statistics
    re-estimated with the noise on) shows it too; the rest is stale statistics (VS202). `local_ratio` tells
    what the noise does when every norm upstream renormalises; it never sets the severity. Where the gap was
    measured, the step "variance-shift" of the loss and its share of the whole gap are added.

    Without data, `predicted_ratio` follows from the weights and the statistics that the norms hold
    (`varshift.predict`); its severity has the same limits, and its confidence is "predicted".

    ## Known limits

    The ratio of channel means is led by the channels of large variance. A large ratio does not say how much
    accuracy is lost: look at the gap. Norms that do not learn, or that the data do not reach, are left out.

    ## Example

    ```python
    nn.Sequential(nn.Conv2d(16, 16, 3), nn.Dropout(0.5), nn.BatchNorm2d(16))
    ```

    ## Cure

    ```python
    varshift.recalibrate(model, loader)
    ```

    For the next training, cure the noise sites (VS101, VS102); `noise` names the last three upstream.

    ## Cure safety

    Recalibration is safe. Moving the noise is unsafe: the network has to be trained again.

    ## References

    - X. Li, S. Chen, X. Hu, J. Yang, "Understanding the Disharmony between Dropout and Batch Normalization
      by Variance Shift", arXiv 1801.05134, section 4.
    """

    code = "VS207"
    name = "variance-shift"
    needs = ("modules",)
    needs_one_of = ("measurement", "prediction")
    uses = ("capture",)

    def applies(self, evidence: Evidence) -> Iterator[Finding]:
        """Yields one finding per norm."""
        if evidence.measurement is None:
            yield from self._predicted(evidence)
            return
        gap = _gap_share(evidence.measurement.gap)
        upstream = noise_upstream(evidence.train)
        for name in norms_in_order(evidence):
            shift = measured_shift(evidence, name) if learns(evidence, name) else None
            severity = shift_severity(shift.blamed) if shift else None
            if shift is not None and severity is not None:
                noise = upstream.get(name, ())
                yield self._finding(evidence, evidence.norms[name], shift, severity, noise, gap)

    def _predicted(self, evidence: Evidence) -> Iterator[Finding]:
        layers = {layer.name: layer for layer in evidence.prediction.layers} if evidence.prediction else {}
        for name in norms_in_order(evidence):
            layer = layers.get(name)
            if layer is None or layer.shift is None or not layer.noise or not learns(evidence, name):
                continue
            severity = None if layer.confidence == "low" else shift_severity(layer.shift)
            if severity is None:
                continue
            yield Finding(
                code=self.code,
                severity=severity,
                confidence="predicted",
                sites=(norm_place(evidence, name),),
                message=(
                    f"Variance shift, predicted without data: in evaluation the norm {quoted(name)} will see "
                    f"{layer.ratio:.3g} times the variance that its statistics hold."
                ),
                evidence={
                    "predicted_ratio": layer.ratio,
                    "predicted_local_ratio": layer.local_ratio,
                    "noise_share": layer.noise_share,
                    "prediction_confidence": layer.confidence,
                    "noise": [str(site) for site in layer.noise[-NAMED:]],
                    "noise_count": len(layer.noise),
                },
                cures=(_RECALIBRATE_UNSEEN, _MOVE_NOISE),
            )

    def _finding(
        self,
        evidence: Evidence,
        facts: NormFacts,
        shift: Shift,
        severity: Severity,
        noise: tuple[SiteId, ...],
        gap: dict[str, float | None],
    ) -> Finding:
        layer = shift.layer
        if shift.never_moved:
            text = (
                f"once it has learnt its statistics with the noise on, the norm {quoted(facts.name)} sees "
                f"{layer.fresh_ratio:.3g} times the learned variance in evaluation"
            )
        else:
            text = (
                f"in evaluation the norm {quoted(facts.name)} sees {layer.ratio:.3g} times the variance that "
                "its statistics hold"
            )
        text += f" ({layer.control_ratio:.3g} without the noise)"
        return Finding(
            code=self.code,
            severity=severity,
            confidence="measured",
            sites=(norm_place(evidence, facts.name),),
            message=f"Variance shift: {text}.",
            evidence={
                **shift.evidence(),
                "mean_offset": known(layer.mean_offset),
                "noise": [str(site) for site in noise[-NAMED:]],
                "noise_count": len(noise),
                **({"never_moved": True} if shift.never_moved else {}),
                **gap,
            },
            cures=(RECALIBRATE, _MOVE_NOISE),
        )


def _staleness(facts: NormFacts, layer: LayerMeasurement, measurement: Measurement) -> _Staleness | None:
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
    deviation = min((ratio, ratio / _within_batches(layer)), key=fold)
    return _Staleness(
        variance=fold(deviation) if abs(deviation - 1) > thresholds.STANDARD_ERRORS * variance_error else 1.0,
        offset=offset if offset > thresholds.STANDARD_ERRORS * mean_error else 0.0,
        variance_error=variance_error,
        mean_error=mean_error,
    )


def _within_batches(layer: LayerMeasurement) -> float:
    """Pooled variance over the mean variance within batches, which is what a norm accumulates.

    The two differ by ``1 / effective batch`` where the values of one sample hang together: 12 % at 8, without
    any fault. Below 4 this is a fault of the batches (sorted or grouped), and nothing is made good for it.
    """
    effective, values = positive(layer.effective_batch), layer.values_per_channel
    if effective is None or effective < 4 or not values:
        return 1.0
    return 1 + max(0.0, 1 / effective - 1 / values)


def _nominal_size(layer: LayerMeasurement) -> float:
    return _Staleness(fold(positive(layer.stale_ratio) or 1.0), known(layer.stale_mean) or 0.0, 0.0, 0.0).size


def _loss_step(gap: Gap | None) -> GapStep | None:
    """The step of the loss that stale statistics make, None where it is within its error or too small."""
    step = _step(gap, "statistics")
    if gap is None or step is None or gap.metric != "loss":
        return None
    delta, error, floor = known(step.delta), known(step.stderr), _loss_floor(gap)
    if delta is None or error is None or floor is None:
        return None
    return step if delta > max(floor, thresholds.LOSS_STANDARD_ERRORS * error) else None


def _harmless(gap: Gap | None) -> bool:
    """Whether the loss is known not to suffer from the stored statistics."""
    step = _step(gap, "statistics")
    if gap is None or step is None or gap.metric != "loss":
        return False
    delta, error, floor = known(step.delta), known(step.stderr), _loss_floor(gap)
    if delta is None or error is None or floor is None:
        return False
    return delta + thresholds.LOSS_STANDARD_ERRORS * error < floor


def _loss_floor(gap: Gap) -> float | None:
    """The smallest step of the loss that anybody would act on."""
    loss = known(gap.states.get("recalibrated_noisy"))
    if loss is None:
        return None
    # Only cross-entropy has a scale of its own.
    return max(thresholds.LOSS_SHARE * abs(loss), thresholds.LOSS_NATS if gap.accuracy is not None else 0.0)


def _deployed_on_batches(evidence: Evidence) -> bool:
    """Whether some norm normalises with batch statistics in evaluation, whatever statistics it stores."""
    stuck = evidence.modes.stuck_training if evidence.modes else {}
    if any(name in evidence.norms for name in stuck):
        return True
    sites = evidence.eval.norms if evidence.eval else ()
    return any(site.batch_statistics and site.kind != "instance_norm" for site in sites)


def _step_severity(gap: Gap | None, step: GapStep) -> Severity:
    loss = known(gap.states.get("recalibrated_noisy")) if gap else None
    large = (step.delta or 0.0) >= thresholds.LOSS_SHARE_WARNING * abs(loss or 0.0)
    return "warning" if large else "advice"


def _gap_share(gap: Gap | None) -> dict[str, float | None]:
    """What the variance shift of the whole network costs, for the evidence."""
    step = _step(gap, "variance-shift")
    delta = known(step.delta) if step else None
    if gap is None or step is None or delta is None:
        return {}
    deltas = [one.delta for one in gap.steps if one.delta is not None and math.isfinite(one.delta)]
    total = sum(deltas)
    share = delta / total if len(deltas) == len(gap.steps) and total else None
    return {"gap_step": delta, **without_none({"gap_step_stderr": known(step.stderr), "gap_share": share})}


def _step(gap: Gap | None, cause: str) -> GapStep | None:
    return next((step for step in gap.steps if step.cause == cause), None) if gap else None
