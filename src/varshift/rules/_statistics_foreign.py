"""Statistics that the weights never produced: averaged, copied, merged or federated networks (VS205)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from varshift._sites import SiteId
from varshift.evidence import Evidence
from varshift.theory import fold

from . import _thresholds as thresholds
from ._cost import Cost, cost_of, graded, price
from ._cures import cure
from ._finding import SEVERITIES, Confidence, Cure, Finding, FindingSite, Severity
from ._places import norm_places
from ._reading import known, learns, listed, norms_in_order, positive, quoted, without_none
from ._recalibration import recalibration
from ._registry import Rule, register
from ._staleness import staleness_of
from ._upstream import parameters_upstream

if TYPE_CHECKING:
    from varshift.probe import NormComparison, References, StateComparison

Form = Literal["defaults", "equal", "left", "averaged", "neither"]


@dataclass(frozen=True, slots=True)
class _Site:
    """One norm with statistics that its weights did not produce, and how far they are off."""

    form: Form
    comparison: NormComparison
    severity: Severity | None
    size: float


@register
class ForeignStatistics(Rule):
    """The weights were averaged, merged or copied, and the statistics are not those that they produce.

    ## What it does

    Compares weights and running statistics with those of the networks that the weights come from, passed as
    `reference=`: the network that a moving average follows, the online network of a target network, the
    parents of a merged one, the clients of a federated round.

    ## Why it matters

    Running statistics belong to the weights that produced them. Whoever averages or copies
    `model.parameters()` does not copy them: they are buffers. The new weights then meet the statistics of a
    new network, of another client, or of weights that have moved on. Averaging the buffers too is better,
    but an average of variances leaves out the spread of the means, and averaged weights see other signals
    than any of their parents.

    ## How it is measured

    Certain, from the tensors, in four forms: statistics are those of a new norm while the reference's have
    moved; they are the reference's to the bit although weights upstream of the norm differ; they are the
    average of those of several references, taken with the same weights as the parameters (without data only
    where their pooled variance is larger by a tenth); they stayed what they were while the weights followed
    another network (`varshift.watch(reference=)`). Measured: the weights come from the reference (cosine
    above 0.5, no longer training of their own), the statistics are neither the reference's nor those that
    training produces.

    What it costs decides: an error from a tenth of the loss in the step "statistics" of the gap, a warning
    from a twentieth. Without a loss it is the running variance against that of the data, 1.1 a warning and
    1.5 an error, or the offset of the mean, 0.1 and 0.5. Without data the statistics are compared with the
    reference's, and those that are equal make a warning where the weights are a tenth apart.

    Of merged networks the evidence has, for each site, the variance that the signal has in evaluation over
    the mean of what it varies by in the references, by their running variances (`variance_kept`): far below 1
    the signal has collapsed, which pooled statistics of the references do not mend and re-estimated ones do.

    Other state that an average does not keep: the singular vectors of a spectral norm, where the largest
    singular value is 1.1 times what the weight is divided by, and the reference's fits; ranges of observers
    that are the average of those of several references, where all of them together are 1.1 times as wide.

    ## Known limits

    Norms are paired by name and shape, or as parts of a network built alike. A network that was trained
    further from the reference for a few steps looks like an average of it. Norms that do not learn are left
    out: weights may have been trained on their statistics.

    ## Example

    ```python
    for average, weight in zip(target.parameters(), online.parameters()):
        average.data.lerp_(weight.data, 0.01)  # buffers stay what they were
    ```

    ## Cure

    ```python
    varshift.recalibrate(model, loader)
    ```

    In the loop: copy the buffers whenever the weights are averaged, or average them too
    (`AveragedModel(model, use_buffers=True)`), and recalibrate before evaluation. Of federated clients pool
    the statistics: variances plus the spread of the means.

    ## Cure safety

    Safe: the weights stay as they are, and the handle can undo it.

    ## References

    - P. Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization", UAI 2018,
      section 3.2.
    - Z. Cai et al., "Exponential Moving Average Normalization for Self-supervised and Semi-supervised
      Learning", CVPR 2021.
    - K. Jordan et al., "REPAIR: REnormalizing Permuted Activations for Interpolation Repair", ICLR 2023.
    """

    code = "VS205"
    name = "foreign-statistics"
    needs = ("modules", "reference")
    uses = ("capture", "measurement")

    def applies(self, evidence: Evidence) -> Iterator[Finding]:
        """Yields at most one finding of the norms, and one of each other state that does not fit."""
        references = evidence.references
        if references is None:
            return
        for kind, form in _STATE_FORMS.items():
            unfit = [state for state in references.states if state.kind == kind and _unfit(state)]
            if unfit:
                yield _state_finding(self.code, form, unfit, references)
        yield from self._foreign(evidence, references)

    def _foreign(self, evidence: Evidence, references: References) -> Iterator[Finding]:
        cost = cost_of(evidence, "statistics")
        sites = [site for name in norms_in_order(evidence) if (site := _site(evidence, references, name))]
        certain = [site for site in sites if site.form != "neither"]
        sites = certain or sites
        if not sites:
            return
        confidence: Confidence = "certain" if certain else "measured"
        grades = {site.severity for site in sites}
        by_ratio: Severity | None = next((one for one in SEVERITIES if one in grades), None)
        severity = graded(cost, by_ratio, confidence=confidence)
        if severity is None:
            return
        sites.sort(key=lambda site: -site.size)
        form = _leading(sites)
        yield Finding(
            code=self.code,
            severity=severity,
            confidence=confidence,
            sites=norm_places(evidence, [site.comparison.name for site in sites]),
            message=_message(form, sites, references, cost),
            evidence={
                "form": form,
                **_subject(references),
                **{f"norms_{name}": count for name, count in Counter(s.form for s in sites).items()},
                "weight_distance": min(references.distance),
                **without_none(
                    {
                        "variance_ratio": _ratio(evidence, sites[0]),
                        "mean_offset": _offset(evidence, sites[0]),
                        "pooled_ratio": sites[0].comparison.pooled_ratio,
                        "batches_tracked": sites[0].comparison.counter,
                        "reference_batches_tracked": sites[0].comparison.reference_counter,
                    }
                ),
                **({"shares": _shares(references)} if references.is_average else {}),
                **_variance_kept(evidence, references, sites),
            },
            cures=_cures(evidence, form, certain=bool(certain)),
            step="statistics",
            cost=price(cost),
        )


def _site(evidence: Evidence, references: References, name: str) -> _Site | None:
    comparison = references.norms.get(name)
    if comparison is None or not learns(evidence, name):
        return None
    form = _form(evidence, references, comparison)
    if form is None:
        return None
    layer, facts = evidence.measured.get(name), evidence.norms[name]
    if layer is None or evidence.measurement is None:
        severity, size = _unmeasured(form, comparison, references)
        return _Site(form, comparison, severity, size)
    staleness = staleness_of(facts, layer, evidence.measurement) if layer.reached else None
    if staleness is None:
        return None
    return _Site(form, comparison, staleness.severity, staleness.size)


def _form(evidence: Evidence, references: References, norm: NormComparison) -> Form | None:
    """How the statistics of a norm relate to those of the references; None where they may be its own."""
    if evidence.norms[norm.name].never_moved:
        return "defaults" if norm.moved else None
    if norm.left:
        return "left"
    upstream = parameters_upstream(evidence).get(norm.name)
    differing = [
        names if upstream is None else names & upstream for names in references.differing
    ]  # per reference: the weights upstream that it has not
    if any(not differing[number] for number in norm.equal):
        return None  # weights and statistics are both that reference's
    if norm.equal:
        return "equal"
    if norm.averaged and references.is_average:
        spread = norm.pooled_ratio is not None and fold(norm.pooled_ratio) >= thresholds.SHIFT_WARNING
        return "averaged" if spread or evidence.measurement is not None else None
    if not all(differing) or max(references.similarity) < thresholds.RELATED_WEIGHTS:
        return None
    trained_on = None not in (norm.counter, norm.reference_counter) and (norm.counter or 0) > (
        thresholds.OWN_TRAINING * (norm.reference_counter or 0)
    )
    return "neither" if evidence.measurement is not None and not trained_on else None


def _unmeasured(
    form: Form, comparison: NormComparison, references: References
) -> tuple[Severity | None, float]:
    """The severity without data: by the reference's statistics, or by how far its weights are."""
    if form == "equal":
        distance = min(references.distance[number] for number in comparison.equal)
        return ("warning" if distance >= thresholds.FAR_WEIGHTS else "advice"), distance
    if form == "averaged":
        return "warning", fold(comparison.pooled_ratio or 1.0)
    shift, offset = fold(positive(comparison.variance_ratio) or 1.0), known(comparison.mean_offset) or 0.0
    if form == "left" and shift < thresholds.SHIFT_WARNING and offset < thresholds.OFFSET_WARNING:
        return "advice", shift + offset
    if shift >= thresholds.SHIFT_ERROR or offset >= thresholds.OFFSET_ERROR:
        return "error", shift + offset
    return "warning", shift + offset


def _ratio(evidence: Evidence, site: _Site) -> float | None:
    layer = evidence.measured.get(site.comparison.name)
    return known(layer.stale_ratio if layer else site.comparison.variance_ratio)


def _offset(evidence: Evidence, site: _Site) -> float | None:
    layer = evidence.measured.get(site.comparison.name)
    return known(layer.stale_mean if layer else site.comparison.mean_offset)


def _variance_kept(
    evidence: Evidence, references: References, sites: Sequence[_Site]
) -> dict[str, list[float | None]]:
    """Of merged networks: at each site, the variance of the signal over that in the references."""
    kept: list[float | None] = []
    for comparison in (site.comparison for site in sites):
        layer, before = evidence.measured.get(comparison.name), positive(comparison.reference_variance)
        signal = layer.real_var if layer is not None else None
        kept.append(None if signal is None or before is None else known(signal / before))
    return {"variance_kept": kept} if references.is_average and any(kept) else {}


def _leading(sites: list[_Site]) -> Form:
    """The form that most of the sites have."""
    count = Counter(site.form for site in sites)
    return max(sites, key=lambda site: count[site.form]).form


def _shares(references: References) -> list[float]:
    return [round(share, 4) for share in references.shares]


def _message(form: Form, sites: list[_Site], references: References, cost: Cost | None) -> str:
    count = len(sites)
    whose = f"{count} norms" if count > 1 else "a norm"
    reference = "the reference" if len(references.classes) == 1 else "a reference"
    if references.subject:
        reference = "the network that trains"
    distance = min(references.distance)
    if form == "defaults":
        text = (
            f"The statistics of {whose} never came along: they are those of a new norm, and {reference} has "
            "others"
        )
    elif form == "equal":
        text = (
            f"The statistics of {whose} are those of {reference} to the bit, but the weights upstream are "
            f"not: they are {distance:.2g} of their size away"
        )
    elif form == "left":
        text = (
            f"The statistics of {whose} were left behind: they are what they were when the watch began, "
            f"while the weights follow {reference}, whose statistics moved"
        )
    elif form == "averaged":
        ratio = sites[0].comparison.pooled_ratio or 1.0
        text = f"The statistics of {whose} are averages over the references, as the weights are"
        if fold(ratio) >= thresholds.SHIFT_WARNING:
            text += f": without the spread of the means, {ratio:.2g} times the pooled variance"
        else:
            text += ": averaged weights see other signals than any of these"
    else:
        origin = "are an average of the references" if references.is_average else f"come from {reference}"
        text = (
            f"The weights {origin} ({distance:.2g} of their size away), and the statistics of {whose} are "
            f"neither those of {reference} nor those that these weights produce"
        )
    if references.subject:
        text = f"{references.subject}: {text}; re-estimate them before it is evaluated"
    if cost is not None and cost.significant and cost.delta > 0:
        text += f"; re-estimating them lowers the {_metric(cost)} by {cost.delta:.3g}"
    return f"{text}."


_REBIND = cure(
    "rebind-statistics",
    "take the statistics over from the networks that the weights come from, pooled over several",
    "unsafe",
)


def _metric(cost: Cost) -> str:
    return "loss" if cost.metric == "loss" else "distance of the outputs"


def _cures(evidence: Evidence, form: Form, *, certain: bool) -> tuple[Cure, ...]:
    """Recalibration, unless it was measured not to help; the references' can be taken over, too."""
    remedy = recalibration(evidence, certain=certain)
    others = (_REBIND,) if form in ("defaults", "left", "averaged") else ()
    return others if remedy is None else (remedy, *others)


_STATE_FORMS: dict[str, str] = {"spectral": "spectral-vectors", "range": "observed-ranges"}


def _unfit(state: StateComparison) -> bool:
    healthy = max(fold(state.reference_ratio), 1.0)
    return fold(state.ratio) >= thresholds.SHIFT_WARNING * healthy


def _subject(references: References) -> dict[str, str]:
    return {"network": references.subject} if references.subject else {}


def _state_finding(
    code: str, form: str, states: Sequence[StateComparison], references: References
) -> Finding:
    worst = max(states, key=lambda state: fold(state.ratio))
    prefix = f"{references.subject}: " if references.subject else ""
    others = (
        f" So with {listed([state.name for state in states if state is not worst])}." if states[1:] else ""
    )
    if form == "spectral-vectors":
        text = (
            f"The spectral norm of {quoted(worst.name)} keeps singular vectors that are not those of its "
            f"weight: the largest singular value is {worst.ratio:.3g} times what the weight is divided by in "
            "evaluation, as after averaging networks"
        )
        name = "take the weights over alone, and run a few forward passes in training mode"
    else:
        text = (
            f"The range that {quoted(worst.name)} observed is the average of those of the references: all of "
            f"them together are {worst.ratio:.3g} times as wide, and what lies outside is cut off"
        )
        name = "take the smallest and the largest value of all, or calibrate again"
    return Finding(
        code=code,
        severity="warning",
        confidence="certain",
        sites=tuple(FindingSite(SiteId(state.name, "module")) for state in states),
        message=f"{prefix}{text}.{others}",
        evidence={
            "form": form,
            **_subject(references),
            "ratio": known(worst.ratio),
            "reference_ratio": known(worst.reference_ratio),
            "count": len(states),
        },
        cures=(cure("rebind-statistics", name, "unsafe"),),
    )
