"""Running statistics as they stand: never moved (VS201), broken (VS203)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from varshift._sites import SiteId
from varshift.evidence import Evidence
from varshift.theory import fold

from . import _thresholds as thresholds
from ._cures import cure
from ._finding import Cure, Finding, Severity
from ._places import norm_place, norm_places
from ._reading import known, listed, norms_in_order, positive, quoted, without_none
from ._registry import Rule, register

if TYPE_CHECKING:
    from varshift.model import NormFacts

_LEARN = cure("recalibrate", "learn the statistics from data (varshift.recalibrate)", "safe", noise=False)


@register
class StatisticsNeverMoved(Rule):
    """Running statistics are still those of a new norm, or the data never reach the norm.

    ## What it does

    Finds norms whose running mean is exactly 0 and running variance exactly 1 in every channel, and norms
    that no batch of the data arrives at.

    ## Why it matters

    Such a norm does nothing in evaluation but scale and shift, while in training it normalises. The usual
    causes: a checkpoint without buffers loaded with `strict=False`, averaged weights whose buffers were
    never computed, a norm put in after training, a part of the network that training never ran. A norm that
    the data do not reach keeps whatever statistics it has, through recalibration too.

    ## How it is measured

    Certain, from the buffers; no statistics of real data are exactly 0 and 1. With data the input in
    evaluation is compared with them: a folded variance `ratio` of 1.5 or a `mean_offset` of half a standard
    deviation makes it an error, otherwise it is a warning. A norm that runs in training but not in
    evaluation (an auxiliary head) is advice. A network without data of which no norm has ever seen a batch
    looks freshly built: it gets one finding, as advice, for all of them.

    ## Known limits

    A norm behind a branch that these data happen not to take counts as never reached.

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

    Safe: the weights stay as they are.

    ## References

    - S. Ioffe, C. Szegedy, "Batch Normalization", ICML 2015, section 3.1, for the statistics of inference.
    """

    code = "VS201"
    name = "statistics-never-moved"
    needs = ("modules",)
    uses = ("capture", "measurement")

    def applies(self, evidence: Evidence) -> Iterator[Finding]:
        """Yields one finding per norm, or one for a network that looks freshly built."""
        names = norms_in_order(evidence)
        all_facts = [evidence.norms[name] for name in names]
        if not all_facts:
            return
        fresh = all(facts.never_moved and not facts.batches_tracked for facts in all_facts)
        if fresh and evidence.measurement is None:
            yield self._freshly_built(evidence, all_facts)
            return
        for facts in all_facts:
            layer = evidence.measured.get(facts.name)
            unreached = layer is not None and not layer.reached
            if facts.never_moved or unreached:
                yield self._finding(evidence, facts, unreached)

    def _freshly_built(self, evidence: Evidence, all_facts: list[NormFacts]) -> Finding:
        names = [facts.name for facts in all_facts]
        return Finding(
            code=self.code,
            severity="advice",
            confidence="certain",
            sites=norm_places(evidence, names),
            message=(
                f"No norm of this network has seen a batch ({listed(names)}): it looks freshly built. "
                "Load trained weights to check what you deploy."
            ),
            evidence={"count": len(names)},
            cures=(_LEARN,),
        )

    def _finding(self, evidence: Evidence, facts: NormFacts, unreached: bool) -> Finding:
        layer = evidence.measured.get(facts.name)
        ratio = positive(layer.ratio) if layer else None
        offset = known(layer.mean_offset) if layer else None
        only_training = (
            evidence.eval is not None
            and facts.name not in evidence.eval_norms
            and facts.name in evidence.train_norms
        )
        severity: Severity = "advice" if only_training else "warning"
        if facts.never_moved and not unreached:
            text = "has running statistics of exactly 0 and 1: they never moved"
            off = fold(ratio or 1.0) >= thresholds.SHIFT_ERROR or (offset or 0.0) >= thresholds.OFFSET_ERROR
            if off and not only_training:
                severity = "error"
            if layer and ratio is not None and offset is not None:
                text += (
                    f", while its input in evaluation has a variance of {layer.real_var:.3g} "
                    f"and a mean {offset:.2g} standard deviations off"
                )
        else:
            text = "is never reached by the data"
            text += ", and its running statistics never moved" if facts.never_moved else ""
            text += " (it runs in training only)" if only_training else ""
        place = norm_place(evidence, facts.name)
        name = "check with data that reach it, or remove it if nothing does"
        return Finding(
            code=self.code,
            severity=severity,
            confidence="measured" if unreached else "certain",
            sites=(place,),
            message=f"The norm {quoted(facts.name)} {text}.",
            evidence={
                "never_moved": facts.never_moved,
                "reached": None if layer is None else layer.reached,
                "batches_tracked": facts.batches_tracked,
                **without_none({"ratio": ratio, "mean_offset": offset}),
            },
            cures=(_LEARN,) if not unreached else (cure("reach-norm", name, "safe", place.id),),
        )


@register
class BrokenStatistics(Rule):
    """Running statistics are not finite, negative, about to overflow, or collapsed.

    ## What it does

    Finds norms with NaN or infinite running statistics, negative variances, variances that float16 cannot
    hold, and channels whose variance is below 100 times the norm's epsilon. With data, also the first norm
    whose input is not finite although the data and all running statistics are.

    ## Why it matters

    One batch with an infinite value makes a running mean infinite and a running variance NaN for ever:
    later clean batches do not help, and every prediction is NaN while training goes on normally. A variance
    above 65504 becomes infinite when the model is cast to half precision. In a collapsed channel epsilon is
    a per cent or more of what the norm divides by: its output falls short of unit variance, and the network
    is no longer invariant to the scale of the weights in front.

    ## How it is measured

    Certain, from the buffers. Not finite or negative: error. Too large for float16: warning. Collapsed: a
    warning when at least half of the channels are, else advice. Statistics that never moved are VS201's.
    An input that is not finite is measured, an error: NaN weights or an overflow upstream, which the next
    batch in training would carry into the running statistics.

    ## Known limits

    Single collapsed channels are common in trained networks (filters that died) and mostly harmless.

    ## Example

    ```python
    model(torch.full((8, 3, 32, 32), float("inf")))  # one such batch in train() is enough
    ```

    ## Cure

    Find the batch and skip it, then re-estimate the statistics from clean data:

    ```python
    varshift.recalibrate(model, loader)
    ```

    Collapsed channels: a larger learning rate or less weight decay on the weights in front, or a smaller
    epsilon; dead ones can be pruned.

    ## Cure safety

    Recalibration is safe. Changing epsilon is unsafe: it changes the outputs.

    ## References

    - PyTorch documentation, `torch.nn.BatchNorm2d`, for the update of the running statistics.
    """

    code = "VS203"
    name = "broken-statistics"
    needs = ("modules",)
    uses = ("capture", "measurement")

    def applies(self, evidence: Evidence) -> Iterator[Finding]:
        """Yields one finding per norm, its gravest fault."""
        yield from self._signal(evidence)
        for name in norms_in_order(evidence):
            facts = evidence.norms[name]
            if facts.never_moved:
                continue
            severity: Severity
            if facts.nonfinite or facts.negative:
                severity, text = "error", self._broken(facts)
            elif facts.largest is not None and facts.largest > thresholds.HALF_PRECISION_LARGEST:
                severity = "warning"
                text = f"has a running variance of {facts.largest:.3g}, which is infinite in float16"
            elif facts.collapsed:
                severity = "warning" if self._collapsed(facts) else "advice"
                text = (
                    f"has {facts.collapsed} of {facts.channels} channels with a variance below 100 epsilon "
                    f"({100 * facts.eps:.2g})"
                )
            else:
                continue
            place = norm_place(evidence, name)
            yield Finding(
                code=self.code,
                severity=severity,
                confidence="certain",
                sites=(place,),
                message=f"The norm {quoted(name)} {text}.",
                evidence={
                    "channels": facts.channels,
                    "nonfinite": facts.nonfinite,
                    "negative": facts.negative,
                    "collapsed": facts.collapsed,
                    "largest": known(facts.largest),
                    "eps": facts.eps,
                },
                cures=(self._cure(severity, facts, place.id),),
            )

    def _signal(self, evidence: Evidence) -> Iterator[Finding]:
        """The first norm whose input is not finite, unless broken statistics upstream account for it."""
        if evidence.measurement is None or any(facts.nonfinite for facts in evidence.norms.values()):
            return
        layers = {layer.name: layer for layer in evidence.measurement.layers if layer.reached}
        order = [name for name in norms_in_order(evidence) if name in layers]
        bad = [name for name in order if layers[name].real_var is None]
        if not bad:
            return
        yield Finding(
            code=self.code,
            severity="error",
            confidence="measured",
            sites=norm_places(evidence, bad),
            message=(
                f"In evaluation the signal at the norm {quoted(bad[0])} is not finite although the "
                f"inputs are; {len(bad)} of {len(order)} norms see such a signal."
            ),
            evidence={"norms": len(bad), "of": len(order)},
            cures=(
                cure(
                    "find-overflow",
                    "find the NaN weights or the overflow in front of it (half precision?)",
                    "unsafe",
                ),
            ),
        )

    def _collapsed(self, facts: NormFacts) -> bool:
        return facts.collapsed >= thresholds.COLLAPSED_SHARE * facts.channels

    def _broken(self, facts: NormFacts) -> str:
        parts = []
        if facts.nonfinite:
            parts.append(f"NaN or infinite running statistics in {facts.nonfinite}")
        if facts.negative:
            parts.append(f"a negative running variance in {facts.negative}")
        return f"has {' and '.join(parts)} of {facts.channels} channels"

    def _cure(self, severity: Severity, facts: NormFacts, target: SiteId) -> Cure:
        if severity == "error":
            name = "re-estimate the statistics from clean data (varshift.recalibrate)"
            return cure("recalibrate", name, "safe", noise=False)
        if facts.largest is not None and facts.largest > thresholds.HALF_PRECISION_LARGEST:
            return cure("keep-float32", "keep this norm in float32", "safe", target)
        name = "prune the dead channels, or train again with less weight decay in front"
        return cure("prune-channels", name, "unsafe", target)
