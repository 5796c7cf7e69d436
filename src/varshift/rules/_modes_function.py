"""Different functions in train and in eval mode, noise and norms apart (VS405)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from varshift.evidence import Evidence

from . import _thresholds as thresholds
from ._cost import Cost, cost_of, graded, price
from ._cures import cure
from ._finding import Finding, FindingSite, Severity
from ._places import NETWORK, parting_place
from ._reading import known, quoted
from ._registry import Rule, register

if TYPE_CHECKING:
    from varshift.flow import FunctionDifference, Parting

_WITHOUT_NOISE = ("function", "small-batch", "variance-shift")
_OF_FUNCTION = ("function", "variance-shift")


@register
class OtherFunction(Rule):
    """`train()` and `eval()` compute different functions, apart from noise and norms.

    ## What it does

    Compares the operations that lead to the main output in both modes, without noise and norms, and names
    the first one at which they differ, where the difference costs something.

    ## Why it matters

    What runs in evaluation was then never trained: a softmax that the loss applies again, weights that were
    folded or merged once and are stale, a branch that is left out. No statistics and no noise explain the
    gap, and re-estimating statistics does not close it.

    ## How it is measured

    Both modes are captured on the same samples and their operations are aligned: by module, operation,
    numbers, and the parameters, buffers and attributes that they read. Noise counts as the signal that it
    meets, norms and copies are left out. The cost is the step "function" of the gap: the same batches, noise
    off, batch statistics, once with modules in train mode and once in eval mode. Without noise in the network
    the step "variance-shift" is a part of it: the statistics are those of the other function. An error costs
    a tenth of the loss, a warning a twentieth; a difference that costs less, or gains, is no finding. Without
    a loss, outputs that move by a tenth are a warning.

    ## Known limits

    A second head, or outputs that exist in training only, are no fault and no finding. A loss that a network
    returns itself and computes otherwise in training (with auxiliary terms) is compared as it is. Where noise
    acts in evaluation too nothing is said: VS106 comes first. Where the
    cost is there and the captured operations are the same, what differs depends on the data or on state: the
    finding then names no operation.

    ## Example

    ```python
    def forward(self, x):
        x = self.net(x)
        return x if self.training else x.softmax(1)  # F.cross_entropy applies it again
    ```

    ## Cure

    Return the same in both modes, and apply what is for deployment outside of the network; merge weights
    again whenever they changed.

    ## Cure safety

    Safe: what was trained is computed.

    ## References

    - Reported as wolny/pytorch-3dunet#45.
    - E. Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022: weights merged for
      deployment.
    """

    code = "VS405"
    name = "other-function"
    needs = ("measurement",)
    uses = ("capture",)

    def applies(self, evidence: Evidence) -> Iterator[Finding]:
        """Yields one finding for the network."""
        difference = evidence.difference
        if evidence.eval is not None and any(site.rate != 0 for site in evidence.eval.noises):
            return  # noise that evaluation does not switch off is a part of the step: VS106
        noisy = evidence.train is None or any(site.rate != 0 for site in evidence.train.noises)
        cost = cost_of(evidence, "function")
        if difference is not None and not noisy:
            cost = cost_of(evidence, *_WITHOUT_NOISE) or cost
        if cost is None or not cost.significant or not _worth(evidence, cost):
            return
        severity = graded(cost, _by_outputs(cost))
        if severity is None or (severity == "advice" and difference is None):
            return
        yield Finding(
            code=self.code,
            severity=severity,
            confidence="measured",
            sites=_sites(evidence, difference),
            message=_message(difference, cost),
            evidence={
                "cost": known(cost.delta),
                "cost_error": known(cost.stderr),
                "noisy": noisy,
                "places": difference.places if difference else 0,
                "train_operation": _named(difference.train) if difference else None,
                "eval_operation": _named(difference.eval) if difference else None,
            },
            cures=(cure("same-function", "let evaluation compute what training computes", "safe"),),
            step="function",
            cost=price(cost),
        )


def _worth(evidence: Evidence, cost: Cost) -> bool:
    """Whether evaluation is worse by it.

    A distance of outputs has no better side. It has to be seen in a step that the function changes: what
    small batches do in between is no other function.
    """
    if cost.metric != "loss":
        steps = [cost_of(evidence, name) for name in _OF_FUNCTION]
        return any(step is not None and step.delta != 0 for step in steps)
    step = cost_of(evidence, "function")
    return cost.delta > 0 and step is not None and step.significant


def _by_outputs(cost: Cost) -> Severity | None:
    if cost.metric == "loss":
        return "advice"
    return "warning" if abs(cost.delta) >= thresholds.FUNCTION_OUTPUTS else None


def _sites(evidence: Evidence, difference: FunctionDifference | None) -> tuple[FindingSite, ...]:
    if difference is None:
        return (NETWORK,)
    parts = [part for part in (difference.eval, difference.train) if part is not None]
    return tuple(parting_place(evidence, part) for part in parts)


def _named(part: Parting | None) -> str | None:
    return None if part is None else f"{part.op} in {quoted(part.module)}"


def _with_line(part: Parting) -> str:
    line = f" ({part.source})" if part.source is not None else ""
    return f"{_named(part)}{line}"


def _message(difference: FunctionDifference | None, cost: Cost) -> str:
    text = "In evaluation the network computes something else than in training, noise and norms apart"
    if difference is None:
        text += ", although the captured operations are the same"
    elif difference.train is None and difference.eval is not None:
        text += f": first {_with_line(difference.eval)}, which runs in evaluation only"
    elif difference.eval is None and difference.train is not None:
        text += f": first {_with_line(difference.train)}, which runs in training only"
    elif difference.eval is not None and difference.train is not None:
        text += f": first {_with_line(difference.eval)} in place of {_with_line(difference.train)}"
    if cost.metric == "loss":
        return f"{text}. The loss goes from {cost.level:.3g} to {cost.level + cost.delta:.3g} with it."
    return f"{text}. The outputs move by {abs(cost.delta):.2g} in relative L2 with it."
