"""State that an evaluation writes (VS406)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from varshift.evidence import Evidence

from . import _thresholds as thresholds
from ._cures import cure
from ._finding import Finding, Severity
from ._places import parting_place
from ._reading import known, listed, quoted
from ._registry import Rule, register

if TYPE_CHECKING:
    from varshift.probe import Repeats


@register
class WrittenInEvaluation(Rule):
    """State is written in evaluation mode, and the next outputs depend on it.

    ## What it does

    Finds observers, caches, counters and running figures that go on changing after `model.eval()`, where
    outputs change with them.

    ## Why it matters

    Two evaluations of one model differ, and a prediction depends on what was predicted before it. What
    validation data wrote is in the next checkpoint, as if it had been learned.

    ## How it is measured

    A few samples run twice in evaluation mode with the same random numbers, the second run where the first
    one left the network; then some other batches run, and the first one again. `drift` is the larger
    relative L2 distance of the outputs. Runs from the same state with other random numbers differ by
    randomness alone: that is VS106. Parameters, buffers and attributes of modules are compared before and
    after a run, and the finding names those that changed and the first operation that gives something else.
    From .1 of the outputs or a tenth of the loss on it is an error, from .001 a warning, below that advice.
    What is written and changes no output (a counter, a cache that gives the same again) is no finding.

    ## Known limits

    Some eight batches are evaluated; what drifts more slowly than they show is worth advice only. Networks
    that carry their state from call to call on purpose (streaming recognisers) are reported too: reset the
    state in `forward`, or ignore the rule at the line that the finding names. State outside the modules is
    not compared.

    ## Example

    ```python
    torch.ao.quantization.prepare_qat(model, inplace=True)
    ...
    model.eval()  # the observers go on learning ranges
    ```

    ## Cure

    Switch it off in evaluation: `model.apply(torch.ao.quantization.disable_observer)`, `if self.training:`
    around the update.

    ## Cure safety

    Safe: what the network is afterwards is what it was at the end of training.

    ## References

    - B. Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
      Inference", CVPR 2018, section 3.1: ranges are learned during training.
    - Reported as clovaai/frostnet#2.
    """

    code = "VS406"
    name = "written-in-evaluation"
    needs = ("trials",)
    uses = ("capture",)

    def applies(self, evidence: Evidence) -> Iterator[Finding]:
        """Yields one finding."""
        repeats = evidence.trials.repeats if evidence.trials else None
        drift = known(repeats.drift) if repeats else None
        if repeats is None or drift is None or drift <= thresholds.REPEAT_DIFFERENCE_UNSEEN:
            return
        at = repeats.drift_at
        written = repeats.written
        names = f"changes {listed(written)}" if written else "changes something outside the modules"
        where = ""
        if at is not None:
            line = f" ({at.source})" if at.source is not None else ""
            where = f", from {at.op} in {quoted(at.module)}{line} on"
        losses = repeats.drift_losses
        effect = f" (loss {losses[0]:.3g} to {losses[1]:.3g})" if losses else ""
        yield Finding(
            code=self.code,
            severity=_severity(drift, repeats),
            confidence="measured",
            sites=(parting_place(evidence, at),),
            message=(
                f"An evaluation {names}, and the outputs of the same samples then differ by {drift:.2g} in "
                f"relative L2{effect}{where}."
            ),
            evidence={
                "drift": drift,
                "written": list(written[:_NAMED]),
                "losses": [known(value) for value in losses] if losses else None,
            },
            cures=(cure("stop-writing", "write it in training only (if self.training)", "safe"),),
            step="function",
            cost=known(losses[1] - losses[0]) if losses else None,
        )


_NAMED = 20  # names in the evidence; a quantised network has hundreds of observers


def _severity(drift: float, repeats: Repeats) -> Severity:
    losses = repeats.drift_losses
    if losses is not None and abs(losses[1] - losses[0]) >= thresholds.DRIFT_ERROR * abs(losses[0]) > 0:
        return "error"
    if drift >= thresholds.DRIFT_ERROR:
        return "error"
    return "warning" if drift >= thresholds.DRIFT_WARNING else "advice"
