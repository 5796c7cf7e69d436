"""How norms keep their running statistics: momentum (VS204) and number type (VS206)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from varshift.evidence import Evidence

from . import _thresholds as thresholds
from ._cures import cure
from ._finding import Finding
from ._places import norm_place
from ._reading import known, norms_in_order, quoted
from ._registry import Rule, register


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

    Certain, from the module.

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

    Then learn the statistics anew: `varshift.recalibrate(model, loader)`.

    ## Cure safety

    Safe: momentum has no part in the gradients, only in the running statistics.

    ## References

    - PyTorch documentation, `torch.nn.BatchNorm2d`, note on momentum.
    - Keras documentation, `BatchNormalization`, argument `momentum`.
    """

    code = "VS204"
    name = "unusual-momentum"
    needs = ("modules",)

    def applies(self, evidence: Evidence) -> Iterator[Finding]:
        """Yields one finding per norm."""
        for name in norms_in_order(evidence):
            facts = evidence.norms[name]
            momentum = facts.momentum
            if momentum is None or 0 < momentum < thresholds.MOMENTUM_LARGE:
                continue
            if momentum == 0:
                text = "its running statistics never move"
                right, remedy = 0.1, "set a momentum such as 0.1, or freeze the norm by eval()"
            elif momentum == 1:
                text = "its running statistics are those of the last batch alone"
                right, remedy = 0.1, "set a momentum such as 0.1, and recalibrate"
            elif 0 < momentum < 1:
                right = 1 - momentum
                text = (
                    "torch's momentum is the weight of the new batch, 1 minus that of Keras: "
                    f"this looks like a ported {momentum:.4g} and should be {right:.4g}"
                )
                remedy = f"set momentum={right:.4g}, and recalibrate"
            else:
                text = "it must be between 0 and 1"
                right, remedy = 0.1, "set a momentum such as 0.1, and recalibrate"
            place = norm_place(evidence, name)
            yield Finding(
                code=self.code,
                severity="warning",
                confidence="certain",
                sites=(place,),
                message=f"The norm {quoted(name)} has a momentum of {momentum:.4g}: {text}.",
                evidence={"momentum": momentum},
                cures=(cure("set-momentum", remedy, "safe", place.id, momentum=right),),
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

    Certain, from the type of the buffer. An error where a value is not finite or too large for float16,
    else a warning.

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

    def applies(self, evidence: Evidence) -> Iterator[Finding]:
        """Yields one finding per norm."""
        for name in norms_in_order(evidence):
            facts = evidence.norms[name]
            if not self._small(facts.dtype):
                continue
            overflow = facts.nonfinite > 0 or (facts.largest or 0.0) > thresholds.HALF_PRECISION_LARGEST
            text = f"keeps its running statistics in {facts.dtype}"
            details: dict[str, Any] = {"dtype": facts.dtype, "largest": known(facts.largest)}
            if overflow:
                text += (
                    ", and they overflow it" if facts.nonfinite else ", and they exceed what float16 can hold"
                )
                details["nonfinite"] = facts.nonfinite
            place = norm_place(evidence, name)
            yield Finding(
                code=self.code,
                severity="error" if overflow else "warning",
                confidence="certain",
                sites=(place,),
                message=f"The norm {quoted(name)} {text}.",
                evidence=details,
                cures=(
                    cure(
                        "keep-float32",
                        "keep the norm in float32, and use autocast for the rest",
                        "safe",
                        place.id,
                    ),
                ),
            )

    def _small(self, dtype: str) -> bool:
        return dtype in ("float16", "bfloat16", "half") or dtype.startswith(("float8", "float4"))
