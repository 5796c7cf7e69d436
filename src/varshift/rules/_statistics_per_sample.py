"""Norms that normalise each sample by itself in training and by a common average in evaluation (VS209)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from varshift.evidence import Evidence

from ._cost import cost_of, graded, price
from ._cures import cure
from ._finding import Finding
from ._places import kind_of_norm, norm_places
from ._reading import capitalised, known, learns, listed, without_none
from ._registry import Rule, register

_STEPS = ("small-batch", "statistics")
_CURE = cure(
    "drop-statistics",
    "use the statistics of each sample in evaluation, too (track_running_stats=False)",
    "safe",
)


@register
class PerSampleStatistics(Rule):
    """A norm per sample (instance norm) keeps running statistics.

    ## What it does

    Finds norms that normalise every sample with its own statistics in training, and all samples with one
    running average in evaluation: `nn.InstanceNorm2d(..., track_running_stats=True)`, and hand-written norms
    that do the same.

    ## Why it matters

    An instance norm removes what differs from sample to sample: brightness, contrast, the style of an image.
    With running statistics it removes nothing of the kind in evaluation. The layers downstream get inputs
    that they never saw in training, however well the running statistics fit the data, so no recalibration
    helps. Networks for image translation and super-resolution show it as washed-out or shifted colours after
    `eval()`.

    ## How it is measured

    Certain: the captured network asks for the statistics of single samples in training mode and for running
    ones in evaluation. Without inputs the class and the buffers of a module tell. With data and a loss, the
    steps "small-batch" and "statistics" of the gap are what it costs, and grade it; without a loss it is a
    warning.

    ## Known limits

    In a network that has batch norms as well, the two steps hold what those cost, too.

    ## Example

    ```python
    nn.InstanceNorm2d(64, affine=True, track_running_stats=True)
    ```

    ## Cure

    Let the norm use the statistics of each sample in evaluation as well, as it does in training:

    ```python
    nn.InstanceNorm2d(64, affine=True)  # track_running_stats=False is the default

    for norm in model.modules():  # for a network that is trained already
        if isinstance(norm, nn.modules.instancenorm._InstanceNorm):
            norm.track_running_stats = False
            norm.running_mean = norm.running_var = norm.num_batches_tracked = None
    ```

    ## Cure safety

    Safe: the network then computes in evaluation what it was trained to compute. The loss that it will have
    is measured: it is that of the network in eval mode with batch statistics, which for these norms are those
    of each sample.

    ## References

    - D. Ulyanov, A. Vedaldi, V. Lempitsky, "Instance Normalization: The Missing Ingredient for Fast
      Stylization", arXiv 1607.08022: the statistics of each image are used at test time as well.
    - junyanz/pytorch-CycleGAN-and-pix2pix, issue 1005.
    """

    code = "VS209"
    name = "per-sample-statistics"
    needs = ("modules",)
    uses = ("capture",)
    improves_with = ("measurement",)

    def applies(self, evidence: Evidence) -> Iterator[Finding]:
        """Yields at most one finding, with all such norms."""
        running = [site.name for site in evidence.train.norms] if evidence.train else []
        candidates = dict.fromkeys((*running, *evidence.norms))
        names = [name for name in candidates if per_sample_only_in_training(evidence, name)]
        if not names:
            return
        cost = cost_of(evidence, *_STEPS)
        severity = graded(cost, "warning", confidence="certain")
        if severity is None:
            return
        gap = evidence.measurement.gap if evidence.measurement else None
        before, after = (known(gap.states.get(name)) if gap else None for name in ("eval", "clean_eval"))
        message = (
            f"{capitalised(listed(names))} {'normalises' if len(names) == 1 else 'normalise'} each sample "
            "with its own statistics in training and all samples with one running average in evaluation"
        )
        measured: dict[str, Any] | None = None
        if cost is not None and cost.metric == "loss" and before is not None and after is not None:
            message += f": the loss is {after:.3g} with the one and {before:.3g} with the other"
            measured = {"metric": "loss", "before": before, "after": after}
        yield Finding(
            code=self.code,
            severity=severity,
            confidence="certain" if evidence.train and evidence.eval else "suspected",
            sites=norm_places(evidence, names),
            message=message + ".",
            evidence={
                "norms": len(names),
                "all_norms": len(names) == len(candidates),
                **without_none({"loss_per_sample": after, "loss_eval": before} if measured else {}),
            },
            cures=(replace(_CURE, measured=measured),),
            step=_larger_step(evidence),
            cost=price(cost),
        )


def per_sample_only_in_training(evidence: Evidence, name: str) -> bool:
    """Whether a norm uses the statistics of single samples in training and running ones in evaluation."""
    train, deployed = evidence.train_norms.get(name), evidence.eval_norms.get(name)
    if not learns(evidence, name):
        return False
    if train is None or not train.tracked:
        facts = evidence.norms.get(name)
        kind = kind_of_norm(facts.cls) if facts else ""
        return train is None and facts is not None and kind == "instance_norm" and facts.tracks
    if train.kind != "instance_norm" and not (train.states is not None and train.states.per_sample):
        return False
    return deployed is None or (deployed.tracked and not deployed.batch_statistics)


def _larger_step(evidence: Evidence) -> str:
    """The step that holds most of the cost: which of the two depends on how much samples differ."""
    costs = {name: cost.delta for name in _STEPS if (cost := cost_of(evidence, name)) is not None}
    return max(costs, key=lambda name: costs[name], default=_STEPS[0])
