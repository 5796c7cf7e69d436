"""Weights that were trained on the stored statistics (VS210)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from varshift.evidence import Evidence
from varshift.theory import fold

from . import _thresholds as thresholds
from ._cost import Cost, loss_severity
from ._cures import cure
from ._finding import Finding
from ._places import norm_places
from ._reading import known, learns, norms_in_order, others, positive, quoted, without_none
from ._recalibration import removed_by_recalibration
from ._registry import Rule, register
from ._stored import deviation_words, ratio_severity, size_of

if TYPE_CHECKING:
    from varshift.probe import LayerMeasurement

_KEEP = cure(
    "keep-statistics", "deploy in eval() with the statistics as they are; do not recalibrate", "safe"
)
_TRAIN = cure(
    "set-mode", "call train() again after every validation, or eval() on purpose in every step", "unsafe"
)


@register
class TrainedOnStoredStatistics(Rule):
    """The weights were trained on the stored statistics: re-estimating them harms.

    ## What it does

    Says so where the loss rises when the running statistics are re-estimated on the data given, and names the
    norms that hold other statistics than training mode would give them. Evaluation is then the good mode, and
    a poor loss in training mode is no news about the network.

    ## Why it matters

    Statistics are part of what the weights were fitted to. A validation that calls `eval()` within an epoch
    without `train()` after it, a backbone whose norms were held in eval mode while it was trained, or a
    network that was only ever trained in eval mode have weights that fit the stored statistics, however far
    these are from those of the data. Every cure that replaces them ruins the network: accuracy fell from 70 %
    to 43 % in one such case.

    ## How it is measured

    The loss in `eval` as shipped is compared with that of statistics re-estimated without noise (the steps
    "variance-shift" and "statistics" of the gap together), on the same batches. It has to rise beyond three
    standard errors and by a twentieth of the loss at least, and some norm has to hold a mean that is a fifth
    of a standard deviation or more from that of training mode, or a third or three times its variance. Moving
    averages that are merely better than the statistics of sixteen batches stay below both. Mixup in the loop
    stays below the second: training mode renormalises, so that it moves little but the variance at the first
    norm. An error from a tenth of the loss, else a warning.

    ## Known limits

    Without a loss it cannot be told from stale statistics (VS202). Norms that training mode leaves alone are
    held on purpose and are not looked at. Data of another kind than those of training can look the same.

    ## Example

    ```python
    for step, batch in enumerate(loader):
        if step % 100 == 0:
            validate(model)  # calls model.eval(), and nobody calls model.train() again
        train_step(model, batch)
    ```

    ## Cure

    Deploy the network in eval mode as it is. For the next training call `model.train()` after every
    validation.

    ## Cure safety

    Leaving the statistics alone is safe. Training on in another mode is unsafe: the weights have to get used
    to it.

    ## References

    - Y. Wu, J. Johnson, "Rethinking 'Batch' in BatchNorm", arXiv 2105.07576, section 3.3, on norms that are
      frozen in fine-tuning.
    """

    code = "VS210"
    name = "trained-on-stored-statistics"
    needs = ("modules", "measurement")
    uses = ("capture",)

    def applies(self, evidence: Evidence) -> Iterator[Finding]:
        """Yields one finding for the whole network."""
        harm = harm_of_recalibration(evidence)
        names = _off(evidence)
        if harm is None or not names:
            return
        states = evidence.measurement.gap.states if evidence.measurement and evidence.measurement.gap else {}
        before, after = states.get("eval"), states.get("recalibrated")
        layer = evidence.measured[names[0]]
        ratio, offset = positive(layer.stale_ratio), known(layer.stale_mean)
        more = f", and {others(names[1:], 'is off', 'are off')}" if len(names) > 1 else ""
        yield Finding(
            code=self.code,
            severity=loss_severity(harm),
            confidence="measured",
            sites=norm_places(evidence, names),
            message=(
                f"Re-estimating the statistics would raise the loss from {before:.3g} to {after:.3g}: the "
                "weights were trained on those that are stored, and eval() is the good mode. In training "
                f"mode the norm {quoted(names[0])} sees {deviation_words(ratio, offset)}{more}. Was the "
                "network trained in eval() after a validation, or with norms held in eval()?"
            ),
            evidence={
                "loss_eval": before,
                "loss_recalibrated": after,
                "harm": harm.delta,
                "harm_stderr": harm.stderr,
                "count": len(names),
                **without_none({"stale_ratio": ratio, "stale_mean": offset}),
            },
            cures=(_KEEP, _TRAIN),
            step="statistics",
            cost=harm.delta,
        )


def harm_of_recalibration(evidence: Evidence) -> Cost | None:
    """What re-estimating the statistics would cost, None where it surely does no harm worth a warning."""
    cost = removed_by_recalibration(evidence)
    if cost is None or not cost.decides or cost.delta >= 0:
        return None
    harm = replace(cost, delta=-cost.delta)
    beyond = harm.delta > thresholds.STANDARD_ERRORS * (harm.stderr or 0.0)
    return harm if beyond and loss_severity(harm) != "advice" else None


def _off(evidence: Evidence) -> list[str]:
    """The learning norms that hold other statistics than training mode gives them, the worst first."""
    sizes = {}
    for name in norms_in_order(evidence):
        layer = evidence.measured.get(name)
        if layer is None or not layer.reached or not learns(evidence, name):
            continue
        figures = positive(layer.stale_ratio), known(layer.stale_mean)
        if ratio_severity(*figures):
            sizes[name] = size_of(*figures)
    if not any(_beyond_mixing(evidence.measured[name]) for name in sizes):
        return []
    return sorted(sizes, key=lambda name: sizes[name], reverse=True)


def _beyond_mixing(layer: LayerMeasurement) -> bool:
    """Whether a norm is further off than mixed inputs explain: they halve a variance at most."""
    offset, shift = known(layer.stale_mean) or 0.0, fold(positive(layer.stale_ratio) or 1.0)
    return offset >= thresholds.STORED_OFFSET or shift >= thresholds.STORED_SHIFT
