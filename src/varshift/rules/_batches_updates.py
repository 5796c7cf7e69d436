"""Statistics that are updated several times for one step of the optimiser (VS305)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from varshift.evidence import Evidence
from varshift.theory import fold

from . import _thresholds as thresholds
from ._cost import Cost, cost_of, loss_severity, price
from ._cures import cure
from ._finding import SEVERITIES, Cure, Finding, Severity
from ._places import norm_places
from ._reading import known, norms_in_order, positive, without_none
from ._recalibration import measured_recalibration
from ._registry import Rule, register
from ._watched import LARGER_PIECES, SKIP_UPDATE, several_updates

if TYPE_CHECKING:
    from varshift.probe import NormUpdates, StepFacts

Form = Literal["recomputed", "perturbed", "pieces", "again"]

_FORMS: Final[dict[Form, str]] = {
    "recomputed": "activation checkpointing runs these norms again in the backward pass",
    "perturbed": "a second forward pass, at weights that the step tries and takes back, updates them too",
    "pieces": "gradients are accumulated over pieces of the batch, and each piece updates them",
    "again": "the same batch goes through the network again, and updates them again",
}


@dataclass(frozen=True, slots=True)
class _Site:
    """One norm that is updated several times, and how much that matters by its figures alone."""

    form: Form
    norm: NormUpdates
    severity: Severity | None
    figure: float


@register
class SeveralUpdates(Rule):
    """The running statistics are updated several times for one step of the optimiser.

    ## What it does

    Runs two of your own training steps on copies of the model, its optimiser and all else that the step
    holds, and counts how often each norm updates its statistics, on what, and at which weights.

    ## Why it matters

    Momentum is set for one update a step. With two, a momentum m acts as 1 - (1 - m)^2: activation
    checkpointing runs the forward pass of a block again in the backward pass, and the statistics remember
    half as many batches. Sharpness-aware steps run a second forward pass at perturbed weights: the last
    update, the one with most weight, is made by weights that are taken back. Accumulating gradients over
    micro-batches lets the norms see a piece of the batch only, however large the sum is.

    ## How it is measured

    Certain, from the step. An update in the backward pass is a recomputation; one at weights that differ
    from those before, with no step of the optimiser in between, is a look at perturbed weights; several of
    parts that add up to the batch are an accumulation; one with the moments of an earlier one is the same
    batch again.

    The severity is the gravest of three. The step "statistics" of the loss, as for other rules; and a
    warning from a share of a fortieth of the loss, since here the cause is certain. The standard error of
    the running mean, sqrt(M / (2 - M) / n) standard deviations for an effective momentum M and n values in
    an update: a warning from 0.1, and below 0.03 no loss is put down to it. For perturbed weights the
    moments of the batch there against those at the step's own weights, with the share that such updates
    have: 1.1 or 0.1 a warning. For pieces the values per channel of one piece, as for VS302: below 16 a
    warning, below 8 an error.

    In a watched training (`varshift.watch`) the counters of the norms say how often each is updated for one
    move of the weights. Two updates of some norms and one of the others are a recomputation, where code of a
    module around them refers to `torch.utils.checkpoint`; as many of all as there were calls of `step()`, or
    as gradients were written, an accumulation; two at weights that are written more often than the optimiser
    writes them, a look at perturbed weights. What fits several of these is advice.

    What costs nothing is advice; accumulation over large pieces and several passes over different batches
    are let pass.

    ## Known limits

    A step that cannot be run without a trace is not run, and the report says why: it writes files, logs to a
    tracker, holds a running iterator or a thread, is part of a distributed run, or uses a global model or
    optimiser from within a class. A step that accumulates over several of its own calls looks like one with
    small batches (VS302).

    ## Example

    ```python
    loss(model(x), y).backward()
    optimizer.first_step()   # to the perturbed weights
    loss(model(x), y).backward()  # updates the statistics again, there
    optimizer.second_step()
    ```

    ## Cure

    Checkpointing: a momentum of 1 - sqrt(1 - m) in the norms inside. Perturbed weights: momentum 0 in the
    second pass. Accumulation: larger pieces, or norms that do not look at the batch. For a network that was
    trained so:

    ```python
    varshift.recalibrate(model, loader)
    ```

    ## Cure safety

    Safe: the weights stay as they are. Larger pieces and other norms are unsafe: train again.

    ## References

    - P. Foret et al., "Sharpness-Aware Minimization for Efficiently Improving Generalization", ICLR 2021.
    - PyTorch documentation, `torch.utils.checkpoint`.
    - S. Ioffe, "Batch Renormalization", NeurIPS 2017, for what small pieces cost.
    """

    code = "VS305"
    name = "several-updates-per-step"
    needs_one_of = ("step", "history")
    uses = ("modules", "capture", "measurement")

    def applies(self, evidence: Evidence) -> Iterator[Finding]:
        """Yields at most one finding, of the form that most norms have."""
        step = evidence.step
        if step is None:
            yield from several_updates(evidence, self.code)
            return
        names = (*norms_in_order(evidence), *step.norms)
        found = [
            site
            for name in dict.fromkeys(names)
            if name in step.norms and (site := _site(evidence, step, step.norms[name])) is not None
        ]
        if not found:
            return
        form = _leading(found)
        sites = sorted((site for site in found if site.form == form), key=lambda site: -site.figure)
        cost = cost_of(evidence, "statistics")
        if form in ("recomputed", "again") and sites[0].figure < thresholds.REMEMBERED_ERROR:
            cost = None  # statistics that remember enough are off for another reason
        grades = {site.severity for site in sites} | {_by_loss(cost)}
        severity: Severity | None = next((one for one in SEVERITIES if one in grades), None)
        if severity is None and form == "pieces":
            return
        worst = sites[0].norm
        yield Finding(
            code=self.code,
            severity=severity or "advice",
            confidence="certain",
            sites=norm_places(evidence, [site.norm.name for site in sites]),
            message=_message(form, sites, step, cost),
            evidence={
                "form": form,
                "updates": worst.updates,
                "optimizer_steps": step.optimizer_steps,
                "samples": step.samples,
                "norms": len(step.norms),
                **without_none(
                    {
                        "momentum": worst.momentum,
                        "effective_momentum": _effective(worst),
                        "values_per_channel": worst.values,
                        "mean_error": _mean_error(evidence, worst)
                        if form in ("recomputed", "again")
                        else None,
                        "variance_ratio": known(worst.variance_ratio),
                        "mean_offset": known(worst.mean_offset),
                        "piece": step.piece if form == "pieces" else None,
                    }
                ),
            },
            cures=_cures(evidence, form, worst),
            step="statistics" if cost is not None else None,
            cost=price(cost),
        )


def _site(evidence: Evidence, step: StepFacts, norm: NormUpdates) -> _Site | None:
    if norm.updates < 2:
        return None
    if norm.perturbed:
        share = _last_share(norm)
        bias = max(
            math.log(1 + share * (fold(positive(norm.variance_ratio) or 1.0) - 1))
            / math.log(thresholds.SHIFT_WARNING),
            share * (known(norm.mean_offset) or 0.0) / thresholds.OFFSET_WARNING,
        )
        return _Site("perturbed", norm, "warning" if bias >= 1 else None, bias)
    if norm.recomputed or norm.again:
        error = _mean_error(evidence, norm) or 0.0
        form: Form = "recomputed" if norm.recomputed else "again"
        return _Site(form, norm, "warning" if error >= thresholds.OFFSET_WARNING else None, error)
    if norm.pieces > 1:
        values = _independent(evidence, step, norm)
        if values is None or values >= thresholds.EFFECTIVE_BATCH_WARNING:
            return None
        return _Site(
            "pieces", norm, "error" if values < thresholds.EFFECTIVE_BATCH_ERROR else "warning", 1 / values
        )
    return None


def _leading(sites: list[_Site]) -> Form:
    """The form that most of the sites have."""
    count = Counter(site.form for site in sites)
    return max(sites, key=lambda site: count[site.form]).form


def _by_loss(cost: Cost | None) -> Severity | None:
    """The severity by the loss; where the cause is certain, half of the usual share makes a warning."""
    if cost is None or not cost.decides or cost.stderr is None:
        return None
    severity = loss_severity(cost)
    if severity != "advice":
        return severity
    least = cost.delta - thresholds.COST_STANDARD_ERRORS * cost.stderr
    return "warning" if least > thresholds.CERTAIN_SHARE * cost.level and least > 0 else None


def _effective(norm: NormUpdates) -> float | None:
    """The momentum that several updates with the same batch act as."""
    return None if norm.momentum is None else 1 - (1 - norm.momentum) ** norm.updates


def _last_share(norm: NormUpdates) -> float:
    """The weight of the last of several updates among those of one step."""
    momentum = norm.momentum if norm.momentum else 1 / norm.updates
    return momentum / (1 - (1 - momentum) ** norm.updates)


def _mean_error(evidence: Evidence, norm: NormUpdates) -> float | None:
    """Standard error of the running mean in standard deviations, by the memory that several updates leave."""
    momentum = _effective(norm)
    if momentum is None or norm.values is None:
        return None
    layer = evidence.measured.get(norm.name)
    independent = positive(layer.effective_batch) if layer else None
    values = min(norm.values, independent or math.inf)
    return math.sqrt(momentum / (2 - momentum) / max(values, 1.0))


def _independent(evidence: Evidence, step: StepFacts, norm: NormUpdates) -> float | None:
    """Independent values per channel in one piece of the batch."""
    if norm.values is None:
        return None
    layer = evidence.measured.get(norm.name)
    whole, error = (
        (positive(layer.effective_batch), known(layer.effective_batch_error)) if layer else (None, None)
    )
    if whole is None or error is None:
        return norm.values
    share = (step.piece or step.samples) / step.samples
    return min(norm.values, whole * (1 + thresholds.EFFECTIVE_BATCH_STANDARD_ERRORS * error) * share)


def _message(form: Form, sites: list[_Site], step: StepFacts, cost: Cost | None) -> str:
    norm = sites[0].norm
    whose = f"{len(sites)} norms are" if len(sites) > 1 else f"The norm '{norm.name}' is"
    text = f"{whose} updated {norm.updates} times for one step of the optimiser: {_FORMS[form]}"
    if form in ("recomputed", "again") and norm.momentum is not None:
        text += f"; a momentum of {norm.momentum:.3g} acts as {_effective(norm):.2g}"
    elif form == "pieces":
        text += (
            f": {norm.values:.3g} values per channel in place of {norm.values * norm.pieces:.3g}"
            if norm.values
            else ""
        )
    elif norm.variance_ratio is not None:
        text += (
            f"; there the variance is {norm.variance_ratio:.3g} times, and the mean "
            f"{norm.mean_offset or 0.0:.2g} standard deviations off"
        )
    if (
        cost is not None
        and cost.decides
        and cost.delta > thresholds.LOSS_STANDARD_ERRORS * (cost.stderr or 0.0)
    ):
        text += f". Re-estimating the statistics lowers the loss by {cost.delta:.3g}"
    return f"{text}."


def _cures(evidence: Evidence, form: Form, norm: NormUpdates) -> tuple[Cure, ...]:
    cures: list[Cure] = []
    if form == "perturbed":
        cures.append(SKIP_UPDATE)
    elif form == "pieces":
        cures.extend(LARGER_PIECES)
    elif norm.momentum is not None:
        single = 1 - (1 - norm.momentum) ** (1 / norm.updates)
        cures.append(
            cure(
                "set-momentum",
                f"a momentum of {single:.2g}, for one update's worth in all",
                "safe",
                momentum=single,
            )
        )
    if (again := measured_recalibration(evidence)) is not None:
        cures.append(again)
    return tuple(cures)
