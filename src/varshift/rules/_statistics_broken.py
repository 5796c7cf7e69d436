"""Running statistics that are not numbers, overflow, or hold no signal (VS203)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from varshift.evidence import Evidence
from varshift.theory import fold

from . import _thresholds as thresholds
from ._cost import cost_of, price
from ._cures import cure
from ._finding import Confidence, Cure, Finding, Severity
from ._places import norm_places
from ._reading import known, listed, norms_in_order, quoted
from ._recalibration import recalibration
from ._registry import Rule, register
from ._stored import deviation
from ._watched import broken_statistics

if TYPE_CHECKING:
    from varshift.model import NormFacts


@register
class BrokenStatistics(Rule):
    """Running statistics are not finite, negative, about to overflow, or hold no signal.

    ## What it does

    Finds norms with NaN or infinite running statistics, negative variances, variances that float16 cannot
    hold where the network computes in float16, and norms whose signal is lost: the variance of half of the
    channels or more is below a hundredth of epsilon. With data, also the first norm whose input is not finite
    although the data and all running statistics are.

    ## Why it matters

    One batch with an infinite value makes a running mean infinite and a running variance NaN for ever: later
    clean batches do not help, and every prediction is NaN while training goes on normally, for instance where
    a gradient scaler skips the step but not the statistics. A variance above 65504 is infinite in float16. A
    channel whose variance is below a hundredth of epsilon leaves the norm with less than a tenth of a
    standard deviation: nothing but its bias is left.

    ## How it is measured

    Certain, from the buffers. Not finite or negative: error. Too large for float16: warning, only where the
    captured network computes in float16 (`half()`, or autocast within the model or `forward=`). Signal lost:
    warning from half of the channels of a norm on, unless evaluation sees another variance there (VS202) or
    the norm's weight for the channel is zero. Statistics that never moved are VS201's, those kept in half
    precision VS206's. An input that is not finite is measured, an error: NaN weights or an overflow upstream,
    which the next batch in training would carry into the running statistics.

    In a watched training (`varshift.watch`) the step is known at which statistics stopped being finite.

    ## Known limits

    An autocast of the training loop alone is not seen. Small variances by themselves are no fault: strong
    weight decay makes weights small, and the norm makes good for it.

    ## Example

    ```python
    model(torch.full((8, 3, 32, 32), float("inf")))  # one such batch in train() is enough
    ```

    ## Cure

    Find the batch and skip it, then re-estimate the statistics from clean data:

    ```python
    varshift.recalibrate(model, loader)
    ```

    Lost signal: a larger learning rate or less weight decay on the weights in front, or a smaller epsilon;
    dead channels can be pruned.

    ## Cure safety

    Recalibration is safe: no statistics are worse than those that are not numbers. Changing epsilon is
    unsafe: it changes the outputs.

    ## References

    - PyTorch documentation, `torch.nn.BatchNorm2d`, for the update of the running statistics.
    """

    code = "VS203"
    name = "broken-statistics"
    needs = ("modules",)
    uses = ("capture", "measurement", "history")

    def applies(self, evidence: Evidence) -> Iterator[Finding]:
        """Yields one finding for each kind of fault."""
        if evidence.history is not None and evidence.measurement is None:
            yield from broken_statistics(evidence, self.code)  # as the training saw it, with the step
            return
        yield from self._signal(evidence)
        groups: tuple[tuple[Callable[[Evidence, NormFacts], bool], Severity], ...] = (
            (_not_numbers, "error"),
            (_overflows, "warning"),
            (_lost, "warning"),
        )
        taken: set[str] = set()
        for belongs, severity in groups:
            facts = [evidence.norms[name] for name in norms_in_order(evidence) if name not in taken]
            some = [one for one in facts if not one.never_moved and belongs(evidence, one)]
            taken.update(one.name for one in some)
            if some and belongs is _not_numbers:
                text = f"{self._broken(some[0])} of {some[0].channels} channels"
                cures = _some(recalibration(evidence, certain=True))
                yield self._finding(evidence, some, severity, text, cures)
            elif some and belongs is _overflows:
                some.sort(key=lambda one: one.largest or 0.0, reverse=True)
                text = f"a running variance of {some[0].largest:.3g}, which is infinite in float16"
                remedy = "keep these norms in float32"
                yield self._finding(evidence, some, severity, text, (cure("keep-float32", remedy, "safe"),))
            elif some:
                some.sort(key=lambda one: one.collapsed / max(one.channels, 1), reverse=True)
                text = (
                    f"{some[0].collapsed} of {some[0].channels} channels without signal: their variance is "
                    f"below a hundredth of epsilon ({some[0].eps:.2g})"
                )
                remedy = "prune the dead channels, or train again with less weight decay in front"
                yield self._finding(
                    evidence, some, severity, text, (cure("prune-channels", remedy, "unsafe"),)
                )

    def _finding(
        self,
        evidence: Evidence,
        some: Sequence[NormFacts],
        severity: Severity,
        text: str,
        cures: tuple[Cure, ...],
    ) -> Finding:
        first, names = some[0], [one.name for one in some]
        more = f"; so {'have' if len(names) > 2 else 'has'} {listed(names[1:])}" if len(names) > 1 else ""
        cost = cost_of(evidence, "statistics") if severity == "error" else None
        confidence: Confidence = "certain"
        return Finding(
            code=self.code,
            severity=severity,
            confidence=confidence,
            sites=norm_places(evidence, names),
            message=f"The norm {quoted(first.name)} has {text}{more}.",
            evidence={
                "count": len(names),
                "channels": first.channels,
                "nonfinite": first.nonfinite,
                "negative": first.negative,
                "collapsed": first.collapsed,
                "largest": known(first.largest),
                "eps": first.eps,
            },
            cures=cures,
            step="statistics" if severity == "error" else None,
            cost=price(cost),
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

    def _broken(self, facts: NormFacts) -> str:
        parts = []
        if facts.nonfinite:
            parts.append(f"NaN or infinite running statistics in {facts.nonfinite}")
        if facts.negative:
            parts.append(f"a negative running variance in {facts.negative}")
        return " and ".join(parts)


def _some(one: Cure | None) -> tuple[Cure, ...]:
    return () if one is None else (one,)


def _not_numbers(evidence: Evidence, facts: NormFacts) -> bool:
    return bool(facts.nonfinite or facts.negative)


def _overflows(evidence: Evidence, facts: NormFacts) -> bool:
    computes = any(flow and "float16" in flow.number_types for flow in (evidence.train, evidence.eval))
    large = facts.largest is not None and facts.largest > thresholds.HALF_PRECISION_LARGEST
    return computes and large


def _lost(evidence: Evidence, facts: NormFacts) -> bool:
    """Whether half of the signal or more is lost, and evaluation sees no other variance than this."""
    ratio, _ = deviation(evidence, facts.name)
    stale = ratio is not None and fold(ratio) >= thresholds.SHIFT_ERROR
    return (
        not stale and facts.collapsed > 0 and facts.collapsed >= thresholds.COLLAPSED_SHARE * facts.channels
    )
