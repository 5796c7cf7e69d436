"""Placement of noise in front of norms: fed directly (VS101), or through weights and sums (VS102)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from varshift.evidence import Evidence
from varshift.theory import fold

from . import _thresholds as thresholds
from ._cures import cure
from ._finding import Confidence, Cure, Finding, Severity
from ._paths import Between, noise_delta
from ._places import noise_place
from ._reading import (
    NAMED,
    RECALIBRATE,
    Shift,
    capitalised,
    learns,
    measured_shift,
    noise_words,
    quoted,
    shift_severity,
)
from ._registry import Rule, register

if TYPE_CHECKING:
    from varshift.flow import NoiseSite


def _move(site: NoiseSite) -> Cure:
    name = "move the noise after the last norm, in front of the classifier, and train again"
    return cure("move-noise", name, "unsafe", site.id, to="head")


def _move_in_branch(site: NoiseSite) -> Cure:
    name = "move it between the branch's last norm and its last weight, and train again"
    return cure("move-noise", name, "unsafe", site.id, to="branch-slot")


def _lower(site: NoiseSite) -> Cure:
    return cure("lower-rate", "lower its rate, and train again", "unsafe", site.id)


def _feeding_cures(site: NoiseSite) -> tuple[Cure, ...]:
    name = "use uniform noise (Uout) in its place, and train again"
    swap = cure("swap-noise", name, "unsafe", site.id, to="uniform")
    return RECALIBRATE, _move(site), _lower(site), swap


def _reached(evidence: Evidence, site: NoiseSite, paths: tuple[str, ...]) -> tuple[str, ...]:
    """The learning norms next behind a noise site on such paths, the nearest first."""
    near = dict(site.near) or ({site.nearest: site.path} if site.nearest else {})
    names = sorted(near, key=lambda name: name != site.nearest)
    return tuple(name for name in names if near[name] in paths and learns(evidence, name))


def _worst(evidence: Evidence, names: tuple[str, ...]) -> tuple[str, Shift] | None:
    """The norm where the noise does most, None when it was measured at none of them."""
    shifts = [(name, shift) for name in names if (shift := measured_shift(evidence, name)) is not None]
    return max(shifts, key=lambda item: item[1].blamed, default=None)


def _facts(site: NoiseSite) -> dict[str, Any]:
    return {
        "norm": site.nearest,
        "kind": site.kind,
        "rate": site.rate,
        "path": site.path,
        "reaches": len(site.reaches),
    }


def _measured(
    rule: Rule,
    site: NoiseSite,
    name: str,
    shift: Shift,
    way: str,
    cures: tuple[Cure, ...],
    shared_with: Sequence[NoiseSite] = (),
) -> Finding:
    evidence = {**_facts(site), **shift.evidence()}
    if name != site.nearest:
        evidence["worst_norm"] = name
    if shared_with:
        evidence["shared_with"] = [str(other.id) for other in shared_with[-NAMED:]]
        evidence["shared_count"] = len(shared_with)
    reference = shift.layer.control_ratio
    if shift.never_moved:
        evidence["never_moved"] = True
        text = (
            f"once the norm has learnt its statistics with this noise, in evaluation it sees "
            f"{shift.layer.fresh_ratio:.3g} times the variance that they hold (without it: {reference:.3g})"
        )
    else:
        text = (
            f"in evaluation it sees {shift.layer.ratio:.3g} times the variance that its statistics hold "
            f"(without the noise: {reference:.3g})"
        )
    return Finding(
        code=rule.code,
        severity=shift_severity(shift.blamed) or "advice",
        confidence="measured",
        sites=(noise_place(site),),
        message=f"{capitalised(noise_words(site))} {way} the norm {quoted(name)}: {text}.",
        evidence=evidence,
        cures=cures,
    )


@register
class NoiseFeedsNorm(Rule):
    """A noise site feeds a norm directly: nothing that mixes units stands between them.

    ## What it does

    Finds every dropout, drop path or other random noise whose output reaches a norm with running statistics
    without passing a weight layer or a sum: the wiring "Dropout-(a)". Activations, views, pooling and
    concatenation may stand between.

    ## Why it matters

    In training the norm learns the variance of the noisy signal; in evaluation the noise is gone and the
    variance is smaller, but the norm still divides by the learned one. With inverted dropout of keep
    probability k, mean c and variance v of its input:

        Var_train = (c^2 + v) / k - c^2        Var_eval = v        ratio = Var_eval / Var_train <= k

    At a drop rate of 0.5 the norm's outputs shrink to 0.71 of their size or less, and every layer behind
    them works on inputs that it was never trained on. Width does not help.

    ## How it is measured

    With data: `ratio` (variance of the norm's input in evaluation over the running variance) divided by
    `control_ratio` (the same after re-estimating the statistics without noise), folded to at least 1. A
    warning from 1.1, an error from 1.5. The noise is blamed only for what `fresh_ratio` (statistics
    re-estimated with the noise on) shows as well; the rest is stale statistics, which VS202 reports. Below
    1.1 there is no finding. The figures are those of the worst norm that the noise feeds directly
    (`worst_norm` where this is not the nearest one).

    Without data: the bound above. `predicted_ratio_bound` is k for Bernoulli noise, 1 / (1 + sigma^2) for
    Gaussian and 3 / (3 + beta^2) for uniform factors. Where a concatenation, a pooling, an activation that
    does not hand the factor on, or noise of another kind makes this a guess, the finding is "suspected" and
    at most a warning.

    ## Known limits

    The bound takes the noise site by itself: noise further upstream changes the signal in both modes. Alpha
    dropout keeps mean and variance of standardised inputs, so nothing is predicted for it. Norms that do
    not learn (frozen ones) are left out.

    ## Example

    ```python
    self.branch = nn.Sequential(
        nn.Conv2d(64, 64, 3, padding=1),
        nn.Dropout(0.5),
        nn.BatchNorm2d(64),  # learns twice the variance that it sees in evaluation
        nn.ReLU(),
    )
    ```

    ## Cure

    For a trained network: `varshift.recalibrate(model, loader)` re-estimates the statistics with the noise
    off. For the next training: put the noise behind the last norm of the network, in front of the
    classifier, or make it weaker.

    ```python
    self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10))
    ```

    ## Cure safety

    Recalibration is safe: the weights stay, the norms get the statistics of the signal they see when
    deployed, and the handle can undo it. Moving or replacing the noise is unsafe: the network has to be
    trained again.

    ## References

    - X. Li, S. Chen, X. Hu, J. Yang, "Understanding the Disharmony between Dropout and Batch Normalization
      by Variance Shift", arXiv 1801.05134, equations 7 and 8.
    """

    code = "VS101"
    name = "noise-feeds-norm"
    needs = ("modules", "capture.train")
    improves_with = ("measurement",)

    def applies(self, evidence: Evidence) -> Iterator[Finding]:
        """Yields one finding per noise site."""
        flow = evidence.train
        if flow is None:
            return
        between = Between(flow)
        for site in flow.noises:
            names = _reached(evidence, site, ("direct",)) if site.path == "direct" and site.rate != 0 else ()
            if not names:
                continue
            worst = _worst(evidence, names)
            if worst is None:
                yield from self._predicted(between, site, names[0])
            elif shift_severity(worst[1].blamed):
                yield _measured(self, site, *worst, "feeds", _feeding_cures(site))

    def _predicted(self, between: Between, site: NoiseSite, name: str) -> Iterator[Finding]:
        if site.kind == "permutation":  # it changes neither mean nor variance
            return
        bound = noise_delta(site)
        certain = bound is not None and between.keeps_the_factor(site, name)
        severity: Severity = "advice" if bound is None else shift_severity(fold(bound)) or "advice"
        if not certain and severity == "error":
            severity = "warning"
        confidence: Confidence = "predicted" if certain else "suspected"
        start = f"{capitalised(noise_words(site))} feeds the norm {quoted(name)}"
        if certain:
            text = f"in evaluation it sees at most {bound:.3g} times the variance that it learns in training"
        elif bound is not None:
            text = (
                f"fed by this noise alone it would see at most {bound:.3g} times the learned variance in "
                "evaluation; what stands between changes that"
            )
        else:
            text = "in evaluation it may see another variance than the one it learns in training"
        yield Finding(
            code=self.code,
            severity=severity,
            confidence=confidence,
            sites=(noise_place(site),),
            message=f"{start}: {text}. Pass data to measure it.",
            evidence={**_facts(site), "predicted_ratio_bound": bound},
            cures=_feeding_cures(site),
        )


@register
class NoiseReachesNorm(Rule):
    """A noise site reaches a norm through a weight layer, or through a sum with another signal.

    ## What it does

    Finds every random noise whose next norm lies behind a weight layer (the wiring "Dropout-(b)") or behind
    a residual sum, and reports those that shift the norm's variance.

    ## Why it matters

    A weight layer does not remove the shift. With noise of variance s2 and independent per unit:

        Var_train = Var_eval + s2 * sum_i w_i^2 E[x_i^2]

    It shrinks only where the weights line up with inputs that vary together, as in wide trained layers. A
    residual sum dilutes it by what the trunk carries: with trunk variance V and branch variance f, the
    inflation is (V r_V + f r_w) / (V + f), and grows again along a stage in which every block has noise.

    ## How it is measured

    With data: as for VS101, at the worst of the norms that the noise reaches without passing another norm.
    A warning from 1.1, an error from 1.5, nothing below: that noise reaches a norm is no fault. A stock
    EfficientNet has 40 of its 49 norms behind a drop path and is not sick.

    Without data the size of the shift is not known. Noise behind a weight layer from a drop rate of 0.1 is
    a warning, weaker noise and noise behind a sum are advice, always "suspected" and never an error.

    ## Known limits

    A norm may be reached by several noise sites; the measured shift is the work of all of them, and each of
    them is reported (`shared_with` names the last three of the others, `shared_count` is their number).
    Norms that do not learn are left out.

    ## Example

    ```python
    self.head = nn.Sequential(
        nn.Dropout(0.5),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.BatchNorm2d(256),  # DeepLabV3's head
        nn.ReLU(),
        nn.Conv2d(256, classes, 1),
    )
    ```

    ## Cure

    For a trained network: `varshift.recalibrate(model, loader)`. For the next training: no norm behind the
    noise, or, in a residual branch, the noise behind the branch's last norm and in front of its last
    weight; a lower rate.

    ```python
    self.head = nn.Sequential(
        nn.Conv2d(256, 256, 3, padding=1),
        nn.BatchNorm2d(256),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Conv2d(256, classes, 1),
    )
    ```

    ## Cure safety

    Recalibration is safe. Moving the noise or changing its rate is unsafe: the network has to be trained
    again.

    ## References

    - X. Li, S. Chen, X. Hu, J. Yang, "Understanding the Disharmony between Dropout and Batch Normalization
      by Variance Shift", arXiv 1801.05134, equations 9 to 14.
    - B. J. Kim, H. Choi, H. Jang, D. Lee, S. W. Kim, "How to Use Dropout Correctly on Residual Networks
      with Batch Normalization", UAI 2023, arXiv 2302.06112.
    """

    code = "VS102"
    name = "noise-reaches-norm"
    needs = ("modules", "capture.train")
    improves_with = ("measurement",)

    def applies(self, evidence: Evidence) -> Iterator[Finding]:
        """Yields one finding per noise site."""
        flow = evidence.train
        if flow is None:
            return
        for site in flow.noises:
            on_path = site.path in ("weight", "join") and site.rate != 0
            names = _reached(evidence, site, ("weight", "join")) if on_path else ()
            if not names:
                continue
            worst = _worst(evidence, names)
            if worst is None:
                yield from self._suspected(site, names[0])
            elif shift_severity(worst[1].blamed):
                name, shift = worst
                others = [other for other in flow.noises if other is not site and name in other.near]
                yield _measured(
                    self,
                    site,
                    name,
                    shift,
                    f"reaches, through {self._way(site, name)},",
                    self._cures(site),
                    others,
                )

    def _suspected(self, site: NoiseSite, name: str) -> Iterator[Finding]:
        if site.kind == "permutation":
            return
        bound = noise_delta(site)
        strong = bound is not None and bound <= 1 - thresholds.NOTABLE_DROP_RATE + 1e-9
        yield Finding(
            code=self.code,
            severity="warning" if strong and site.near.get(name, site.path) == "weight" else "advice",
            confidence="suspected",
            sites=(noise_place(site),),
            message=(
                f"{capitalised(noise_words(site))} reaches the norm {quoted(name)} through "
                f"{self._way(site, name)}: the norm may learn a larger variance than it sees in evaluation. "
                "Pass data to measure how much."
            ),
            evidence=_facts(site),
            cures=self._cures(site),
        )

    def _way(self, site: NoiseSite, name: str) -> str:
        joined = site.near.get(name, site.path) == "join"
        return "a sum with another signal" if joined else "a weight layer"

    def _cures(self, site: NoiseSite) -> tuple[Cure, ...]:
        if site.kind in ("drop_path", "drop_block"):
            return RECALIBRATE, _lower(site)
        move = _move_in_branch(site) if site.path == "join" else _move(site)
        return RECALIBRATE, move, _lower(site)
