"""One norm for several signals (VS403)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from varshift.evidence import Evidence

from . import _thresholds as thresholds
from ._cost import Cost, cost_of, graded, graver, loss_severity, price
from ._cures import cure
from ._finding import Cure, Finding, Severity
from ._places import norm_places
from ._reading import known, quoted, so_with
from ._registry import Rule, register
from ._watched import shared_norms

if TYPE_CHECKING:
    from varshift.probe import Distributions, NormCalls

_Way = Literal["calls", "configurations", "batches"]
_CAUSES = ("small-batch", "variance-shift", "statistics")


@register
class SharedNorm(Rule):
    """One norm is fed by different distributions: several calls per forward, several widths, several domains.

    ## What it does

    Finds norms whose running statistics are an average over signals that each batch normalises apart: a norm
    that one forward calls several times (pyramid levels, views, a siamese encoder), a network that draws its
    configuration in training (widths, skipped layers), batches of several kinds.

    ## Why it matters

    In training each signal is normalised with its own moments. In evaluation all get the average, which may
    fit none: a level with a small variance vanishes, one with a large variance saturates. Where one call
    always sees one kind, its moments even give the answer away, and a network learns to read them.

    ## How it is measured

    Some batches of at most 32 samples run in train mode without noise, and the moments of every call of
    every norm are taken: `ratio`, the largest channel mean of the variance over the smallest; `offset`, how
    far a mean is from the common one, in standard deviations; `consistency`, how far the calls are from
    their mean in standard errors over batches. A network that draws its configuration runs one batch six
    times: configurations are kinds of moments, of which some occur twice. Where a batch is worth far fewer
    values than it holds, batches are looked at for two groups, eight standard deviations apart.

    Signals are different from a ratio of 1.5 or an offset of .5 on, calls also from a consistency of 3 on
    where batches hold 16 samples and more. What the steps from batch statistics to the shipped ones cost
    decides the severity (`small-batch` alone where noise has a part in the others). Without a loss a ratio
    of 2.25 or an offset of 1 is a warning, less is advice.

    In a watched training (`varshift.watch`) a norm is shared where several module paths lead to it, or
    where its statistics are updated several times for one step while those of norms next to it are not.

    ## Known limits

    A width that the user sets between steps is not seen: pass a loader of `forward=` calls that set it.
    Configurations rarer than one forward in six may be missed, and those of networks with hundreds of them
    are told from noise only where there is none. Batches of several kinds that differ little are VS304's.

    ## Example

    ```python
    for level, x in enumerate(pyramid):
        outputs.append(self.head(self.norm(self.tower(x))))  # one norm for all levels
    ```

    ## Cure

    Give each distribution a norm of its own (`nn.ModuleList`, one per level, width or domain), or use a norm
    without running statistics. A network that is deployed in one configuration can have its statistics
    re-estimated in that one: `varshift.recalibrate(model, loader)`.

    ## Cure safety

    Safe where one forward calls a norm several times and each call gets statistics of its own, with the
    weights that they share: evaluation then computes what training does. Norms with weights of their own have
    to be trained. Re-estimating is offered where it is measured to help.

    ## References

    - J. Yu, L. Yang, N. Xu, J. Yang, T. Huang, "Slimmable Neural Networks", ICLR 2019: one norm per width.
    - T.-Y. Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, and open-mmlab/mmdetection#6515:
      one head over all levels.
    - W.-G. Chang et al., "Domain-Specific Batch Normalization for Unsupervised Domain Adaptation", CVPR 2019.
    """

    code = "VS403"
    name = "shared-norm"
    needs_one_of = ("norm_calls", "history")
    uses = ("modules", "capture", "measurement")

    def applies(self, evidence: Evidence) -> Iterator[Finding]:
        """Yields one finding for each way in which signals differ."""
        heard = evidence.norm_calls or ()
        yield from shared_norms(evidence, self.code)
        for way in ("calls", "configurations", "batches"):
            found = [(one, spread) for one in heard if (spread := _read(one, way)) is not None]
            different = [(one, spread) for one, spread in found if _differs(evidence, way, spread)]
            if different and (finding := self._finding(evidence, way, different)) is not None:
                yield finding

    def _finding(
        self, evidence: Evidence, way: _Way, norms: Sequence[tuple[NormCalls, Distributions]]
    ) -> Finding | None:
        norms = sorted(norms, key=lambda pair: -_size(pair[1]))
        _, worst = norms[0]
        cost, severity = _graded(evidence, _by_ratio(worst))
        if severity is None:
            return None
        names = [one.name for one, _ in norms]
        return Finding(
            code=self.code,
            severity=severity,
            confidence="measured",
            sites=norm_places(evidence, names),
            message=_message(way, names, worst, cost),
            evidence={
                "way": way,
                "distributions": worst.count,
                "variances": [known(value) for value in worst.variances],
                "ratio": known(worst.ratio),
                "offset": known(worst.offset),
                "consistency": known(worst.consistency),
                **({"cost": known(cost.delta), "cost_error": known(cost.stderr)} if cost else {}),
            },
            cures=_cures(evidence, way),
            step="small-batch",
            cost=price(cost),
        )


def _read(one: NormCalls, way: _Way) -> Distributions | None:
    return {"calls": one.calls, "configurations": one.configurations, "batches": one.batches}[way]


def _size(spread: Distributions) -> float:
    """How different the signals are, in one number: 1 at the least that counts."""
    return max(
        math.log(spread.ratio) / math.log(thresholds.DISTRIBUTIONS_RATIO) if spread.ratio > 0 else math.inf,
        spread.offset / thresholds.DISTRIBUTIONS_OFFSET,
    )


def _differs(evidence: Evidence, way: _Way, spread: Distributions) -> bool:
    if _size(spread) >= 1:
        return True
    measurement = evidence.measurement
    # With few samples a call's own moments cost something, whatever the calls see: that is VS302.
    large = measurement is not None and measurement.samples >= thresholds.SHARED_SAMPLES * measurement.batches
    return way == "calls" and large and (spread.consistency or 0.0) >= thresholds.STANDARD_ERRORS


def _by_ratio(spread: Distributions) -> Severity | None:
    if _size(spread) >= thresholds.DISTRIBUTIONS_WARNING:
        return "warning"
    return "advice" if _size(spread) >= 1 else None


def _graded(evidence: Evidence, by_ratio: Severity | None) -> tuple[Cost | None, Severity | None]:
    """What the shared norm costs, and the severity.

    Where the signals are far apart statistics of all of them cost what the first step says, though the stored
    ones, which happen to be nearer to one of them, may cost less.
    """
    cost = _cost(evidence)
    severity = graded(cost, by_ratio)
    pooled = cost_of(evidence, _CAUSES[0])
    if by_ratio == "warning" and pooled is not None and pooled.decides:
        alone = loss_severity(pooled)
        if severity is None or graver(severity, alone) != severity:
            return pooled, alone
    return cost, severity


def _cost(evidence: Evidence) -> Cost | None:
    """From batch statistics to the shipped ones; the first step alone where noise acts on the others."""
    noisy = evidence.train is not None and any(site.rate != 0 for site in evidence.train.noises)
    if noisy:
        return cost_of(evidence, _CAUSES[0])
    return cost_of(evidence, *_CAUSES) or cost_of(evidence, _CAUSES[0])


def _message(way: _Way, names: Sequence[str], worst: Distributions, cost: Cost | None) -> str:
    norm = f"The norm {quoted(names[0])}"
    feeds = {
        "calls": f"is called {worst.count} times in one forward",
        "configurations": f"sees {worst.count} configurations of the network in training, drawn by chance",
        "batches": "sees two kinds of batches",
    }[way]
    if _size(worst) >= 1:
        variances = ", ".join(f"{value:.3g}" for value in worst.variances[:4])
        if worst.count > 4:
            variances += ", ..."
        how = f"with variances of {variances} and means up to {worst.offset:.2g} standard deviations off"
    else:
        how = f"always in the same order, with means {worst.offset:.2g} standard deviations off"
    text = f"{norm} {feeds}, {how}: its running statistics are an average that fits none of them"
    if cost is not None and cost.metric == "loss" and cost.delta > 0:
        text += f", and the loss goes from {cost.level:.3g} to {cost.level + cost.delta:.3g} with them"
    others = so_with(names)
    return f"{text}.{others}"


def _cures(evidence: Evidence, way: _Way) -> tuple[Cure, ...]:
    if way == "calls":  # training is as before, and evaluation then does what training does
        name = "give each call statistics of its own, with the same weights, and re-estimate them"
        return (cure("split-norm", name, "safe", shared=True),)
    split = cure("split-norm", "give each of them a norm of its own, and train again", "unsafe")
    step = cost_of(evidence, "statistics")
    if way != "configurations" or step is None or not (step.significant and step.delta > 0):
        return (split,)
    name = "re-estimate the statistics in the configuration that is deployed (varshift.recalibrate)"
    return (cure("recalibrate", name, "safe", noise=False), split)
