"""Placement of noise in front of norms: fed directly (VS101), or through weights and sums (VS102)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from varshift.evidence import Evidence
from varshift.theory import fold

from . import _thresholds as thresholds
from ._cost import graded, price
from ._cures import cure
from ._finding import Confidence, Cure, Finding, Severity
from ._paths import Between, noise_delta
from ._places import noise_place
from ._reading import (
    Shift,
    capitalised,
    learns,
    measured_shift,
    noise_words,
    others,
    quoted,
    shift_severity,
)
from ._recalibration import cost_words, deployed_cost, recalibration
from ._registry import Rule, register
from ._staleness import is_learned

if TYPE_CHECKING:
    from varshift._sites import SiteId
    from varshift.flow import NoiseSite


@dataclass(frozen=True, slots=True)
class _Reach:
    """A noise site, the norm where it does most, and what was measured there."""

    site: NoiseSite
    norm: str
    shift: Shift


@dataclass(frozen=True, slots=True)
class _Suspect:
    """A noise site in front of a norm that nothing was measured at.

    Attributes:
        site: The noise site.
        norm: The nearest norm that learns.
        ratio: Variance in evaluation over the learned one, as far as it can be told.
        severity: By that ratio, or by the rate of the noise.
        confidence: How it is known.
    """

    site: NoiseSite
    norm: str
    ratio: float | None
    severity: Severity
    confidence: Confidence


class _NoiseAtNorm(Rule):
    """What VS101 and VS102 share: they differ by the way from the noise to the norm."""

    needs = ("modules", "capture.train")
    improves_with = ("measurement",)
    paths: ClassVar[tuple[str, ...]]

    def applies(self, evidence: Evidence) -> Iterator[Finding]:
        """Yields one finding for all noise sites that were measured, and one for those that could not be."""
        flow = evidence.train
        if flow is None:
            return
        reaches: list[_Reach] = []
        unmeasured: list[tuple[NoiseSite, str]] = []
        for site in flow.noises:
            on_path = site.path in self.paths and site.rate != 0
            names = _reached(evidence, site, self.paths) if on_path else ()
            shifts = {name: shift for name in names if (shift := measured_shift(evidence, name)) is not None}
            if shifts:
                worst = max(shifts, key=lambda name: shifts[name].blamed)
                reaches.append(_Reach(site, worst, shifts[worst]))
            elif learnt := [name for name in names if not _noise_free(evidence, name)]:
                unmeasured.append((site, learnt[0]))
        yield from self._measured(evidence, reaches)
        suspects = [one for site, name in unmeasured if (one := self.suspect(evidence, site, name))]
        if suspects:
            yield self._suspected(evidence, suspects)

    @abstractmethod
    def suspect(self, evidence: Evidence, site: NoiseSite, norm: str) -> _Suspect | None:
        """What can be said of a noise site without a measurement."""

    @abstractmethod
    def way(self, site: NoiseSite, norm: str, words: str) -> str:
        """How the noise comes to the norm, with `words` for the norm: ``"feeds it"``."""

    @abstractmethod
    def cures(self, sites: Sequence[NoiseSite]) -> tuple[Cure, ...]:
        """What cures it besides other statistics."""

    def _measured(self, evidence: Evidence, reaches: Sequence[_Reach]) -> Iterator[Finding]:
        if not reaches:
            return
        reaches = sorted(reaches, key=lambda one: one.shift.blamed, reverse=True)
        worst = reaches[0]
        cost = deployed_cost(evidence, "variance-shift")
        severity = graded(cost, shift_severity(worst.shift.blamed))
        shown = [one for one in reaches if shift_severity(one.shift.blamed)]
        if not shown and worst.norm == _worst_norm(evidence):
            shown = [one for one in reaches if one.norm == worst.norm]
        if severity is None or not shown:
            return
        way = self.way(worst.site, worst.norm, "it")
        text = f"{worst.shift.words(worst.norm)}: {noise_words(worst.site)} {way}"
        if len(shown) > 1:
            text += f". {others((one.site.name for one in shown[1:]), 'does so', 'do so')}"
        certain = all(is_learned(evidence, one.norm) for one in shown)
        remedy = recalibration(evidence, certain=certain)
        yield Finding(
            code=self.code,
            severity=severity,
            confidence="measured",
            sites=tuple(noise_place(one.site) for one in shown),
            message=f"{text}{'. ' + cost_words(cost) if cost else ''}.",
            evidence={
                **_facts(worst.site),
                **worst.shift.evidence(),
                **({"worst_norm": worst.norm} if worst.norm != worst.site.nearest else {}),
                **({"never_moved": True} if worst.shift.never_moved else {}),
                "count": len(shown),
            },
            cures=(*((remedy,) if remedy else ()), *self.cures([one.site for one in shown])),
            step="variance-shift",
            cost=price(cost),
        )

    def _suspected(self, evidence: Evidence, suspects: Sequence[_Suspect]) -> Finding:
        order: tuple[Severity, ...] = ("error", "warning", "advice")
        suspects = sorted(suspects, key=lambda one: (order.index(one.severity), -fold(one.ratio or 1.0)))
        worst = suspects[0]
        way = self.way(worst.site, worst.norm, f"the norm {quoted(worst.norm)}")
        text = f"{capitalised(noise_words(worst.site))} {way}: {self.expectation(worst)}"
        if len(suspects) > 1:
            text += f". {others((one.site.name for one in suspects[1:]), 'does so', 'do so')}"
        remedy = recalibration(evidence)
        return Finding(
            code=self.code,
            severity=graded(None, worst.severity, confidence=worst.confidence) or "advice",
            confidence=worst.confidence,
            sites=tuple(noise_place(one.site) for one in suspects),
            message=f"{text}. Pass data to measure it.",
            evidence={**_facts(worst.site), **self.figures(worst), "count": len(suspects)},
            cures=(*((remedy,) if remedy else ()), *self.cures([one.site for one in suspects])),
            step="variance-shift",
        )

    @abstractmethod
    def expectation(self, suspect: _Suspect) -> str:
        """What the norm may see in evaluation, in words."""

    def figures(self, suspect: _Suspect) -> dict[str, Any]:
        """Numbers for the finding about a suspect."""
        return {}


def _reached(evidence: Evidence, site: NoiseSite, paths: tuple[str, ...]) -> tuple[str, ...]:
    """The learning norms next downstream of a noise site on such paths, the nearest first."""
    near = dict(site.near) or ({site.nearest: site.path} if site.nearest else {})
    names = sorted(near, key=lambda name: name != site.nearest)
    return tuple(name for name in names if near[name] in paths and learns(evidence, name))


def _noise_free(evidence: Evidence, name: str) -> bool:
    """Whether the statistics of a norm bear the mark of a recalibration without noise."""
    facts = evidence.norms.get(name)
    return facts is not None and facts.reestimated is not None


def _worst_norm(evidence: Evidence) -> str | None:
    """The norm that is shifted most of those that some noise reaches next."""
    near = {name for site in (evidence.train.noises if evidence.train else ()) for name in site.near}
    shifts = {
        name: shift.blamed
        for name in evidence.norms
        if name in near and learns(evidence, name) and (shift := measured_shift(evidence, name))
    }
    return max(shifts, key=lambda name: shifts[name], default=None)


def _facts(site: NoiseSite) -> dict[str, Any]:
    return {
        "norm": site.nearest,
        "kind": site.kind,
        "rate": site.rate,
        "path": site.path,
        "reaches": len(site.reaches),
    }


def _target(sites: Sequence[NoiseSite]) -> SiteId | None:
    """What a cure changes: the noise site, or, where several are concerned, the network."""
    return sites[0].id if len(sites) == 1 else None


def _lower(sites: Sequence[NoiseSite]) -> Cure:
    rates = "its rate" if len(sites) == 1 else "the rates"
    return cure("lower-rate", f"lower {rates}, and train again", "unsafe", _target(sites))


def _move(sites: Sequence[NoiseSite]) -> Cure:
    name = "move the noise after the last norm, in front of the classifier, and train again"
    return cure("move-noise", name, "unsafe", _target(sites), to="head")


@register
class NoiseFeedsNorm(_NoiseAtNorm):
    """Noise feeds a norm directly: nothing in between mixes units.

    ## What it does

    Finds every dropout, drop path or other random noise whose output reaches a norm with running statistics
    without passing a weight layer or a sum: the wiring "Dropout-(a)". Activations, views, pooling and
    concatenation may come in between. One finding lists all such sites, the one that does most first.

    ## Why it matters

    In training the norm learns the variance of the noisy signal; in evaluation the noise is gone and the
    variance is smaller, but the norm still divides by the learned one. With inverted dropout of keep
    probability k, mean c and variance v of its input:

        Var_train = (c^2 + v) / k - c^2        Var_eval = v        ratio = Var_eval / Var_train <= k

    At a drop rate of 0.5 the norm's outputs shrink to 0.71 of their size or less, and every layer after
    them works on inputs that it was never trained on. Width does not help.

    ## How it is measured

    With data: `ratio` (variance of the norm's input in evaluation over the running variance) divided by
    `control_ratio` (the same after re-estimating the statistics without noise), folded to at least 1. The
    noise is blamed only for what `fresh_ratio` (statistics re-estimated with the noise on) shows as well; the
    rest is stale statistics, which VS202 reports. The figures are those of the worst norm that the noise
    feeds directly (`worst_norm` where this is not the nearest one).

    Where a loss was measured on four batches or more, what the shift costs sets the severity: an error from a
    tenth of the loss, a warning from a twentieth, else advice. The cost is the step "variance-shift" of the
    gap, or, where that is less, what re-estimating without noise would win. Sites are listed from a folded
    ratio of 1.1 on; where no norm reaches it and the shift costs a twentieth of the loss or more all the
    same, those that feed the worst norm are. Without a loss a ratio of 1.1 is a warning and one of 1.5 an
    error.

    Without data: the bound above. `predicted_ratio_bound` is k for Bernoulli noise, 1 / (1 + sigma^2) for
    Gaussian and 3 / (3 + beta^2) for uniform factors; from 1.1 on a warning, never more. Where a
    concatenation, a pooling, an activation that does not hand the factor on, or noise of another kind makes
    this a guess, the finding is "suspected".

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
    off. For the next training: put the noise after the last norm of the network, in front of the
    classifier, or make it weaker.

    ```python
    self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10))
    ```

    ## Cure safety

    Recalibration is safe where the loss was measured to fall, and without a loss where the statistics are
    those of training with its noise: the weights stay, the norms get the statistics of the signal they see
    when deployed, and the handle can undo it. Without data it is unsafe. Moving or replacing the noise is
    unsafe: the network has to be trained again.

    ## References

    - X. Li, S. Chen, X. Hu, J. Yang, "Understanding the Disharmony between Dropout and Batch Normalization
      by Variance Shift", arXiv 1801.05134, equations 7 and 8.
    """

    code = "VS101"
    name = "noise-feeds-norm"
    paths = ("direct",)

    def way(self, site: NoiseSite, norm: str, words: str) -> str:
        """Directly."""
        return f"feeds {words}"

    def suspect(self, evidence: Evidence, site: NoiseSite, norm: str) -> _Suspect | None:
        """By the bound of the closed form; certain where the factor arrives at the norm as it left."""
        if site.kind == "permutation" or evidence.train is None:  # it changes neither mean nor variance
            return None
        bound = noise_delta(site)
        certain = bound is not None and Between(evidence.train).keeps_the_factor(site, norm)
        severity: Severity = "advice" if bound is None else shift_severity(fold(bound)) or "advice"
        return _Suspect(site, norm, bound, severity, "predicted" if certain else "suspected")

    def expectation(self, suspect: _Suspect) -> str:
        """The bound, as far as it binds."""
        if suspect.confidence == "predicted":
            return f"in evaluation it sees at most {suspect.ratio:.3g} times the variance that it learns"
        if suspect.ratio is not None:
            return (
                f"fed by this noise alone it would see at most {suspect.ratio:.3g} times the learned "
                "variance in evaluation; what comes in between changes that"
            )
        return "in evaluation it may see another variance than the one that it learns"

    def figures(self, suspect: _Suspect) -> dict[str, Any]:
        """The bound."""
        return {"predicted_ratio_bound": suspect.ratio}

    def cures(self, sites: Sequence[NoiseSite]) -> tuple[Cure, ...]:
        """Another place, rate or kind."""
        name = "use uniform noise (Uout) in its place, and train again"
        swap = cure("swap-noise", name, "unsafe", _target(sites), to="uniform")
        return _move(sites), _lower(sites), swap


@register
class NoiseReachesNorm(_NoiseAtNorm):
    """Noise reaches a norm through a weight layer, or through a sum with another signal.

    ## What it does

    Finds every random noise whose next norm comes after a weight layer (the wiring "Dropout-(b)") or after a
    residual sum, and reports, once and the worst first, those that shift the norm's variance.

    ## Why it matters

    A weight layer does not remove the shift. With noise of variance s2 and independent per unit:

        Var_train = Var_eval + s2 * sum_i w_i^2 E[x_i^2]

    It shrinks only where the weights line up with inputs that vary together, as in wide trained layers. A
    residual sum dilutes it by what the trunk carries: with trunk variance V and branch variance f, the
    inflation is (V r_V + f r_w) / (V + f), and grows again along a stage in which every block has noise.

    ## How it is measured

    With data: as for VS101, at the worst of the norms that the noise reaches without passing another norm,
    and with the same severities: that noise reaches a norm is no fault by itself. A stock EfficientNet has 40
    of its 49 norms downstream of a drop path and is not sick.

    Without data `varshift.predict` tells the size of the shift where its confidence is not low: a warning
    from 1.1 on, else nothing. Where it does not, noise in front of a weight layer from a drop rate of 0.1 is
    a warning, weaker noise and noise in front of a sum are advice, always "suspected".

    ## Known limits

    A norm may be reached by several noise sites; the measured shift is the work of all of them. Norms that do
    not learn are left out.

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

    For a trained network: `varshift.recalibrate(model, loader)`. For the next training: no norm after the
    noise, or, in a residual branch, the noise after the branch's last norm and in front of its last
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

    As for VS101: recalibration is safe where the loss was measured to fall. Moving the noise or changing its
    rate is unsafe: the network has to be trained again.

    ## References

    - X. Li, S. Chen, X. Hu, J. Yang, "Understanding the Disharmony between Dropout and Batch Normalization
      by Variance Shift", arXiv 1801.05134, equations 9 to 14.
    - B. J. Kim, H. Choi, H. Jang, D. Lee, S. W. Kim, "How to Use Dropout Correctly on Residual Networks
      with Batch Normalization", UAI 2023, arXiv 2302.06112.
    """

    code = "VS102"
    name = "noise-reaches-norm"
    uses = ("prediction",)
    paths = ("weight", "join")

    def way(self, site: NoiseSite, norm: str, words: str) -> str:
        """Through a weight layer or a sum."""
        joined = site.near.get(norm, site.path) == "join"
        return f"reaches {words} through {'a sum with another signal' if joined else 'a weight layer'}"

    def suspect(self, evidence: Evidence, site: NoiseSite, norm: str) -> _Suspect | None:
        """By the prediction where it is sure of itself, else by the rate of the noise."""
        if site.kind == "permutation":
            return None
        layers = {layer.name: layer for layer in evidence.prediction.layers} if evidence.prediction else {}
        layer = layers.get(norm)
        if layer is not None and layer.shift is not None and layer.confidence != "low":
            severity = shift_severity(layer.shift)
            return None if severity is None else _Suspect(site, norm, layer.ratio, severity, "predicted")
        bound = noise_delta(site)
        strong = bound is not None and bound <= 1 - thresholds.NOTABLE_DROP_RATE + 1e-9
        weight = site.near.get(norm, site.path) == "weight"
        return _Suspect(site, norm, None, "warning" if strong and weight else "advice", "suspected")

    def expectation(self, suspect: _Suspect) -> str:
        """The predicted ratio, where there is one."""
        if suspect.ratio is not None:
            return f"in evaluation it will see {suspect.ratio:.3g} times the variance that it holds"
        return "in evaluation it may see a smaller variance than the one that it learns"

    def figures(self, suspect: _Suspect) -> dict[str, Any]:
        """The predicted ratio, where there is one."""
        return {} if suspect.ratio is None else {"predicted_ratio": suspect.ratio}

    def cures(self, sites: Sequence[NoiseSite]) -> tuple[Cure, ...]:
        """Another place, or a lower rate."""
        if all(site.kind in ("drop_path", "drop_block") for site in sites):
            return (_lower(sites),)
        if all(site.path == "join" for site in sites):
            name = "move it between the branch's last norm and its last weight, and train again"
            return cure("move-noise", name, "unsafe", _target(sites), to="branch-slot"), _lower(sites)
        return _move(sites), _lower(sites)
