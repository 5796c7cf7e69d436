"""How norms keep their running statistics: momentum (VS204) and number type (VS206)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from varshift.evidence import Evidence

from . import _thresholds as thresholds
from ._cost import cost_of, graded, graver, price
from ._cures import cure
from ._finding import Finding, Severity
from ._places import norm_places
from ._reading import capitalised, known, learns, listed, norms_in_order
from ._registry import Rule, register
from ._stored import worst_first

if TYPE_CHECKING:
    from varshift.model import NormFacts


@register
class UnusualMomentum(Rule):
    """The momentum of a norm looks like another framework's convention, or stops its statistics.

    ## What it does

    Finds norms with a momentum of 0.5 or more, and of exactly 0.

    ## Why it matters

    Torch's momentum is the weight of the new batch: `running = (1 - momentum) * running + momentum * new`.
    In Keras it is the weight of the old value, so its 0.99 is torch's 0.01. Ported as it stands, 0.99 makes
    the running statistics those of the last batch: evaluation then depends on which batch came last. With 0
    they stay what they are, for a new norm 0 and 1. `None` is fine: it is a cumulative average.

    ## How it is measured

    Certain, from the module. A warning; where a loss was measured and the step "statistics" of the gap costs
    a tenth of it, an error. A momentum of 0 is graded by that step alone. Frozen norms are left out.

    ## Known limits

    A momentum of 0 may be meant as a freeze; `eval()` on the norm says so more clearly.

    ## Example

    ```python
    nn.BatchNorm2d(64, momentum=0.99, eps=1e-3)  # the numbers of a Keras model
    ```

    ## Cure

    ```python
    nn.BatchNorm2d(64, momentum=0.01, eps=1e-3)
    ```

    Then learn the statistics again: `varshift.recalibrate(model, loader)`.

    ## Cure safety

    Safe: momentum has no part in the gradients, only in the running statistics.

    ## References

    - PyTorch documentation, `torch.nn.BatchNorm2d`, note on momentum.
    - Keras documentation, `BatchNormalization`, argument `momentum`.
    """

    code = "VS204"
    name = "unusual-momentum"
    needs = ("modules",)
    improves_with = ("measurement",)

    def applies(self, evidence: Evidence) -> Iterator[Finding]:
        """Yields one finding for each way in which a momentum is unusual."""
        groups: dict[str, list[str]] = {}
        for name in norms_in_order(evidence):
            momentum = evidence.norms[name].momentum
            if momentum is None or 0 < momentum < thresholds.MOMENTUM_LARGE or not learns(evidence, name):
                continue
            groups.setdefault(_convention(momentum), []).append(name)
        for kind, names in groups.items():
            yield self._finding(evidence, kind, worst_first(evidence, names))

    def _finding(self, evidence: Evidence, kind: str, names: Sequence[str]) -> Finding:
        momentum = evidence.norms[names[0]].momentum or 0.0
        right = 1 - momentum if kind == "ported" else 0.1
        if kind == "none":
            text = "running statistics never move"
            remedy = "set a momentum such as 0.1, or freeze the norms by eval()"
        elif kind == "last":
            text = "running statistics are those of the last batch alone"
            remedy = "set a momentum such as 0.1, and recalibrate"
        elif kind == "half":
            text = "it forgets half of the past with every batch"
            remedy = "set a momentum such as 0.1, and recalibrate"
        elif kind == "ported":
            text = (
                "torch's momentum is the weight of the new batch, 1 minus that of Keras: "
                f"this looks like a ported {momentum:.4g} and should be {right:.4g}"
            )
            remedy = f"set momentum={right:.4g}, and recalibrate"
        else:
            text = "it must be between 0 and 1"
            remedy = "set a momentum such as 0.1, and recalibrate"
        cost = cost_of(evidence, "statistics")
        places = norm_places(evidence, names)
        severity = graded(cost, "warning", confidence="certain") or "advice"
        if kind != "none":  # a setting that nobody means, whatever the last batch happened to be like
            severity = graver(severity, "warning")
        return Finding(
            code=self.code,
            severity=severity,
            confidence="certain",
            sites=places,
            message=f"A momentum of {momentum:.4g} at {listed(names)}: {text}.",
            evidence={"momentum": momentum, "count": len(names)},
            cures=(cure("set-momentum", remedy, "safe", places[0].id, momentum=right),),
            step="statistics",
            cost=price(cost),
        )


@register
class HalfPrecisionStatistics(Rule):
    """Running statistics are kept in half precision.

    ## What it does

    Finds norms whose running variance is a float16, bfloat16 or smaller number.

    ## Why it matters

    A moving average adds small steps to a large value: with momentum 0.1 and the 8 bits of a bfloat16
    mantissa, a step below 0.4 % of the value is rounded away, and the statistics stop short of their
    target. In float16 a variance above 65504 is infinite. Mixed precision needs neither: autocast keeps
    norms in float32.

    ## How it is measured

    Certain, from the type of the buffer. An error where a value is not finite or too large for float16, else
    by what the step "statistics" of the gap costs where a loss was measured: an error from a tenth, a warning
    from a twentieth, advice below. Without a loss a warning.

    ## Known limits

    For inference alone, statistics that were learnt in float32 and cast afterwards lose three digits at
    most.

    ## Example

    ```python
    model = model.half()  # buffers too
    ```

    ## Cure

    ```python
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.float()
    ```

    Or leave the model in float32 and use `torch.autocast`. Statistics that were learnt in half precision
    are re-estimated by `varshift.recalibrate(model, loader)`.

    ## Cure safety

    Safe: torch's norms take half-precision inputs with float32 statistics.

    ## References

    - PyTorch documentation, "Automatic Mixed Precision package", operations that autocast to float32.
    """

    code = "VS206"
    name = "half-precision-statistics"
    needs = ("modules",)
    improves_with = ("measurement",)

    def applies(self, evidence: Evidence) -> Iterator[Finding]:
        """Yields one finding for the norms that overflow, and one for the others."""
        names = [name for name in norms_in_order(evidence) if _small(evidence.norms[name].dtype)]
        overflowing = [name for name in names if _overflows(evidence.norms[name])]
        for some in (overflowing, [name for name in names if name not in overflowing]):
            if some:
                yield self._finding(evidence, worst_first(evidence, some), overflow=some is overflowing)

    def _finding(self, evidence: Evidence, names: Sequence[str], *, overflow: bool) -> Finding:
        facts = evidence.norms[names[0]]
        verb = "keeps" if len(names) == 1 else "keep"
        text = f"{capitalised(listed(names))} {verb} running statistics in {facts.dtype}"
        details: dict[str, Any] = {
            "dtype": facts.dtype,
            "largest": known(facts.largest),
            "count": len(names),
        }
        if overflow:
            text += ", and they overflow it" if facts.nonfinite else ", and they exceed what float16 can hold"
            details["nonfinite"] = facts.nonfinite
        cost = cost_of(evidence, "statistics")
        remedy = "keep the norms in float32, use autocast for the rest, and recalibrate"
        severity: Severity = (
            "error" if overflow else graded(cost, "warning", confidence="certain") or "advice"
        )
        return Finding(
            code=self.code,
            severity=severity,
            confidence="certain",
            sites=norm_places(evidence, names),
            message=f"{text}.",
            evidence=details,
            cures=(cure("keep-float32", remedy, "safe"),),
            step="statistics",
            cost=price(cost),
        )


def _small(dtype: str) -> bool:
    return dtype in ("float16", "bfloat16", "half") or dtype.startswith(("float8", "float4"))


def _overflows(facts: NormFacts) -> bool:
    return facts.nonfinite > 0 or (facts.largest or 0.0) > thresholds.HALF_PRECISION_LARGEST


def _convention(momentum: float) -> str:
    if momentum == 0:
        return "none"
    if momentum == 1:
        return "last"
    if not 0 < momentum < 1:
        return "impossible"
    return "ported" if 1 - momentum < thresholds.MOMENTUM_LARGE else "half"  # turned around it is the same
