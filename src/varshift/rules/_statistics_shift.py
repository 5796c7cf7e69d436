"""Norms that learned on a noisy signal and are deployed on a clean one (VS207)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from varshift.evidence import Evidence

from ._cost import graded, price
from ._cures import BATCH_FREE, cure
from ._finding import Cure, Finding, Severity
from ._places import norm_places
from ._reading import (
    NAMED,
    Shift,
    known,
    learns,
    listed,
    measured_shift,
    noise_upstream,
    norms_in_order,
    others,
    quoted,
    shift_severity,
    without_none,
)
from ._recalibration import cost_words, deployed_cost, recalibration
from ._registry import Rule, register
from ._staleness import is_learned

if TYPE_CHECKING:
    from varshift._sites import SiteId

_MOVE_NOISE = cure("move-noise", "move the noise after the last norm, and train again", "unsafe", to="head")


@register
class VarianceShift(Rule):
    """A variance shift is measured at norms: they learned on a noisy signal and are deployed on a clean one.

    ## What it does

    Reports, once and the worst norm first, the norms whose input in evaluation has another variance than
    their statistics hold, as far as the noise in the network accounts for it, where no rule about the place
    of the noise (VS1xx) says it already. Without data the shift is predicted.

    ## Why it matters

    The norm's output in evaluation is scaled by the square root of the ratio, and offset where means moved.
    The layers downstream never saw such inputs, and the errors of successive norms multiply. This is what
    makes a network good in `train()` and bad in `eval()`.

    ## How it is measured

    `ratio` is the variance of the norm's input in evaluation over its running variance, both as means over
    the channels; `control_ratio` is the same after re-estimating the statistics without noise: what depth
    and small batches do by themselves. `excess = ratio / control_ratio` counts as the noise's only as far as
    `fresh_ratio` (statistics re-estimated with the noise on) shows it too; the rest is stale statistics
    (VS202).

    Where a loss was measured on four batches or more, what the shift costs sets the severity: an error from a
    tenth of the loss, a warning from a twentieth, else advice. The cost is the step "variance-shift" of the
    gap, or, where that is less, what re-estimating without noise would win. Without a loss a folded excess of
    1.1 is a warning and one of 1.5 an error. `local_ratio` tells what the noise does when every norm upstream
    renormalises; it never sets the severity.

    Without data, `predicted_ratio` follows from the weights and the statistics that the norms hold
    (`varshift.predict`); from 1.1 on it is a warning, never more, and its confidence is "predicted".

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

    Recalibration is safe where the loss was measured to fall, and without a loss where the statistics are
    those of training with its noise; without data it is unsafe. Moving the noise is unsafe: the network has
    to be trained again.

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
        """Yields one finding for all shifted norms."""
        if evidence.measurement is None:
            yield from self._predicted(evidence)
            return
        upstream = noise_upstream(evidence.train)
        shifts = {
            name: shift
            for name in norms_in_order(evidence)
            if learns(evidence, name) and (shift := measured_shift(evidence, name)) is not None
        }
        names = sorted(shifts, key=lambda name: shifts[name].blamed, reverse=True)
        shifted = [name for name in names if shift_severity(shifts[name].blamed)]
        cost = deployed_cost(evidence, "variance-shift")
        severity = graded(cost, shift_severity(shifts[names[0]].blamed) if names else None)
        if severity is None or not names:
            return
        noisy = [name for name in names if upstream.get(name)]
        shown = shifted or noisy[:1] or names[:1]
        yield self._finding(evidence, shown, shifts[shown[0]], severity, upstream.get(shown[0], ()))

    def _predicted(self, evidence: Evidence) -> Iterator[Finding]:
        layers = {layer.name: layer for layer in evidence.prediction.layers} if evidence.prediction else {}
        shifted = {}
        for name in norms_in_order(evidence):
            layer = layers.get(name)
            if layer is None or layer.shift is None or not layer.noise or not learns(evidence, name):
                continue
            if layer.confidence != "low" and shift_severity(layer.shift):
                shifted[name] = layer
        if not shifted:
            return
        names = sorted(shifted, key=lambda name: shifted[name].shift or 1.0, reverse=True)
        worst = shifted[names[0]]
        more = f", and so will {listed(names[1:])}" if len(names) > 1 else ""
        remedies = (recalibration(evidence), _MOVE_NOISE, BATCH_FREE)
        yield Finding(
            code=self.code,
            severity=graded(None, shift_severity(worst.shift or 1.0), confidence="predicted") or "advice",
            confidence="predicted",
            sites=norm_places(evidence, names),
            message=(
                f"In evaluation the norm {quoted(worst.name)} will see {worst.ratio:.3g} times the variance "
                f"that it holds, as predicted without data{more}."
            ),
            evidence={
                "count": len(names),
                "predicted_ratio": worst.ratio,
                "predicted_local_ratio": worst.local_ratio,
                "noise_share": worst.noise_share,
                "prediction_confidence": worst.confidence,
                "noise": [str(site) for site in worst.noise[-NAMED:]],
                "noise_count": len(worst.noise),
            },
            cures=tuple(remedy for remedy in remedies if remedy),
            step="variance-shift",
        )

    def _finding(
        self,
        evidence: Evidence,
        names: Sequence[str],
        shift: Shift,
        severity: Severity,
        noise: tuple[SiteId, ...],
    ) -> Finding:
        layer, cost = shift.layer, deployed_cost(evidence, "variance-shift")
        text = shift.words(names[0])
        if len(names) > 1:
            text += f"; {others(names[1:], 'is shifted', 'are shifted')}"
        remedies: tuple[Cure | None, ...] = (
            recalibration(evidence, certain=is_learned(evidence, names[0])),
            _MOVE_NOISE,
            BATCH_FREE,
        )
        return Finding(
            code=self.code,
            severity=severity,
            confidence="measured",
            sites=norm_places(evidence, names),
            message=f"{text}{'. ' + cost_words(cost) if cost else ''}.",
            evidence={
                "count": len(names),
                **shift.evidence(),
                "mean_offset": known(layer.mean_offset),
                "noise": [str(site) for site in noise[-NAMED:]],
                "noise_count": len(noise),
                **({"never_moved": True} if shift.never_moved else {}),
                **gap_share(evidence),
            },
            cures=tuple(remedy for remedy in remedies if remedy),
            step="variance-shift",
            cost=price(cost),
        )


def gap_share(evidence: Evidence) -> dict[str, float | None]:
    """What the variance shift of the network costs, and its share of the gap, for the evidence."""
    gap = evidence.measurement.gap if evidence.measurement else None
    step = gap.step("variance-shift") if gap else None
    delta = known(step.delta) if step else None
    if gap is None or step is None or delta is None:
        return {}
    deltas = [known(one.delta) for one in gap.steps]
    total = sum(delta for delta in deltas if delta is not None)
    share = delta / total if None not in deltas and total else None
    return {"gap_step": delta, **without_none({"gap_step_stderr": known(step.stderr), "gap_share": share})}
