"""Frozen parameters with live statistics (VS402)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from varshift.evidence import Evidence, ModeFacts

from . import _thresholds as thresholds
from ._finding import Confidence, Finding, Severity
from ._places import norm_places
from ._reading import known, learns, norms_in_order, quoted, so_with
from ._registry import Rule, register
from ._upstream import drifted, parameters_upstream
from ._watched import CALL_TRAIN, HOLD_STATISTICS, wrong_modes

if TYPE_CHECKING:
    from varshift.probe import StepFacts


@register
class HalfFrozen(Rule):
    """Parameters are frozen, and the statistics of their norms go on learning, or `train()` wakes them.

    ## What it does

    Finds norms all of whose inputs come from frozen parameters, while other parameters train, and whose
    running statistics `train()` lets go on learning.

    ## Why it matters

    `requires_grad_(False)` stops the optimiser, not the running statistics: they follow the new data with
    every forward in training mode. The backbone that was to stay as it is computes something else than
    before: another head on it fails, and a checkpoint of it is no longer the pretrained one. Putting the
    backbone in `eval()` once does not help where every epoch calls `model.train()`.

    ## How it is measured

    Certain, from `requires_grad`, from the captured network (which parameters a norm's input depends on) and
    from the flags: a norm whose own parameters and all those upstream are frozen, in training mode in a
    model in training mode, is a warning. In a model in evaluation mode such norms are one where all their
    statistics are those of the data at hand (within 5 % in variance and .1 standard deviations in mean), as
    they are after training on them. With `reference=`, the network that the backbone was taken from,
    statistics that differ although all weights upstream are the same are an error. A norm that was put in
    `eval()` in a model in training mode, and that the model's `train()` would wake, is advice.

    With `step=` nothing has to be concluded from flags: statistics that a training step moves while none of
    the parameters that they depend on move, frozen or in no optimiser, are certain, and flags that the step
    sets itself count. A step that runs every norm in evaluation mode while their parameters train is a
    warning: nobody called `train()` again.

    In a watched training (`varshift.watch`) it is seen as it happens: weights that move while network,
    norms and noise are in evaluation mode, three times in a row; noise next to weights that train, never in
    training mode; a norm that was held in evaluation mode and is in training mode again; statistics that move
    in a part of the network that is frozen as a whole.

    ## Known limits

    Statistics that were adapted to new data on purpose look the same. A norm whose scale or offset trains is
    left alone, and so is a network without any parameter that trains. Without a capture nothing is known of
    what lies upstream.

    ## Example

    ```python
    backbone.requires_grad_(False)
    for epoch in range(epochs):
        model.train()  # wakes the norms of the backbone
    ```

    ## Cure

    ```python
    def train(self, mode=True):
        super().train(mode)
        self.backbone.eval()
        return self
    ```

    Take the statistics of the backbone from its checkpoint again.

    ## Cure safety

    Safe where nothing was trained yet. A head that was trained on drifting statistics has to be trained
    again.

    ## References

    - Reported as kdexd/virtex#16 and Lightning-AI/pytorch-lightning#2551.
    - PyTorch documentation, `torch.nn.Module.requires_grad_` and `eval`.
    """

    code = "VS402"
    name = "half-frozen"
    needs = ("modules",)
    needs_one_of = ("capture.train", "history")
    uses = ("measurement", "reference", "step")

    def applies(self, evidence: Evidence) -> Iterator[Finding]:
        """Yields one finding for the norms that are awake, else one for those that would be."""
        modes = evidence.modes
        if modes is None or not modes.trained:
            return
        if evidence.step is not None:
            yield from self._by_step(evidence, evidence.step, modes)
            return
        if evidence.history is not None:
            findings = tuple(wrong_modes(evidence, self.code))
            yield from findings
            if findings or evidence.train is None:
                return
        frozen = _frozen_inputs(evidence, modes)
        moved = set(drifted(evidence)) & set(frozen)
        held = [name for name in frozen if modes.root_training and name in modes.as_passed]
        # The batch statistics of one norm hide from the next what it would see in evaluation: all must fit.
        followed = modes.root_training or all(_fits(evidence, name) for name in frozen)
        awake = [name for name in frozen if name not in held and (followed or name in moved)]
        if awake:
            yield self._finding(evidence, awake, bool(moved & set(awake)))
        elif held:
            yield self._woken(evidence, held)

    def _by_step(self, evidence: Evidence, step: StepFacts, modes: ModeFacts) -> Iterator[Finding]:
        """What a training step shows needs no flags: which parameters move, and which statistics."""
        awake = [name for name in norms_in_order(evidence) if _drifts_in(evidence, step, name)]
        if awake:
            yield self._finding(evidence, awake, bool(set(drifted(evidence)) & set(awake)), seen=True)
        asleep = [
            name
            for name, norm in step.norms.items()
            if norm.training is False and norm.trainable and name not in modes.stuck_eval
        ]
        if asleep and step.moved and not any(norm.training is not False for norm in step.norms.values()):
            yield self._asleep(evidence, asleep, step.quiet_noise)

    def _asleep(self, evidence: Evidence, names: list[str], noise: tuple[str, ...]) -> Finding:
        also = f", and {len(noise)} noise modules do nothing" if noise else ""
        return Finding(
            code=self.code,
            severity="warning",
            confidence="certain",
            sites=norm_places(evidence, names),
            message=(
                f"The training step runs the network in evaluation mode: the norm {quoted(names[0])} trains "
                f"its parameters on stored statistics{also}." + so_with(names)
            ),
            evidence={"reason": "asleep", "norms": len(names), "quiet_noise": len(noise)},
            cures=(CALL_TRAIN,),
        )

    def _finding(self, evidence: Evidence, names: list[str], moved: bool, *, seen: bool = False) -> Finding:
        severity: Severity = "error" if moved else "warning"
        certain = moved or seen or _in_training(evidence, names)
        confidence: Confidence = "certain" if certain else "measured"
        what = (
            "its statistics are no longer those of the network that its weights come from"
            if moved
            else "a training step moves its statistics all the same"
            if seen
            else "train() lets its statistics follow the data"
        )
        return Finding(
            code=self.code,
            severity=severity,
            confidence=confidence,
            sites=norm_places(evidence, names),
            message=(
                f"The norm {quoted(names[0])} is frozen with all weights upstream, and {what}."
                + so_with(names)
            ),
            evidence={"reason": "drifted" if moved else "awake", "norms": len(names), "seen": seen},
            cures=(HOLD_STATISTICS,),
            step="statistics",
        )

    def _woken(self, evidence: Evidence, names: list[str]) -> Finding:
        return Finding(
            code=self.code,
            severity="advice",
            confidence="certain",
            sites=norm_places(evidence, names),
            message=(
                f"The frozen norm {quoted(names[0])} is in evaluation mode, and model.train() wakes it: put "
                "it back after every call of it, as an overridden train() does." + so_with(names)
            ),
            evidence={"reason": "woken", "norms": len(names)},
            cures=(HOLD_STATISTICS,),
        )


def _drifts_in(evidence: Evidence, step: StepFacts, name: str) -> bool:
    """Whether a step moves the statistics of a norm, and none of the parameters that they depend on.

    Parameters stay where they require no gradient, and where no optimiser has them.
    """
    norm, before = step.norms.get(name), parameters_upstream(evidence).get(name)
    if norm is None or not norm.moved or before is None or not step.moved:
        return False
    module = name.partition("#")[0]
    own = {p for p in (*step.moved, *step.trainable) if p.rpartition(".")[0] == module}
    depends = own | before
    return bool(depends) and not depends & step.moved


def _frozen_inputs(evidence: Evidence, modes: ModeFacts) -> list[str]:
    """The norms that learn statistics although nothing that they depend on trains."""
    upstream = parameters_upstream(evidence)
    names = []
    for name in norms_in_order(evidence):
        facts = evidence.norms[name]
        module = name.partition("#")[0]
        own = {p for p in (*modes.frozen, *modes.trained) if p.rpartition(".")[0] == module}
        before = upstream.get(name)
        if before is None or not (own | before) or (own | before).intersection(modes.trained):
            continue
        by_flag = modes.root_training and name in modes.as_passed
        if (learns(evidence, name) or by_flag) and not facts.never_moved and module not in modes.stuck_eval:
            names.append(name)
    return names


def _fits(evidence: Evidence, name: str) -> bool:
    """Whether the statistics are those of the data at hand."""
    layer = evidence.measured.get(name)
    ratio, offset = (known(layer.stale_ratio), known(layer.stale_mean)) if layer else (None, None)
    if ratio is None or offset is None:
        return False
    near = 1 / thresholds.FITTING_RATIO <= ratio <= thresholds.FITTING_RATIO
    return near and offset <= thresholds.OFFSET_WARNING


def _in_training(evidence: Evidence, names: list[str]) -> bool:
    return evidence.modes is not None and evidence.modes.root_training and bool(names)
