"""Frozen parameters with live statistics (VS402)."""

from __future__ import annotations

from collections.abc import Iterator

from varshift.evidence import Evidence, ModeFacts

from . import _thresholds as thresholds
from ._cures import cure
from ._finding import Confidence, Finding, Severity
from ._places import norm_places
from ._reading import known, learns, listed, norms_in_order, quoted
from ._registry import Rule, register
from ._upstream import drifted, parameters_upstream


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
    needs = ("modules", "capture.train")
    uses = ("measurement", "reference")

    def applies(self, evidence: Evidence) -> Iterator[Finding]:
        """Yields one finding for the norms that are awake, else one for those that would be."""
        modes = evidence.modes
        if modes is None or not modes.trained:
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

    def _finding(self, evidence: Evidence, names: list[str], moved: bool) -> Finding:
        severity: Severity = "error" if moved else "warning"
        confidence: Confidence = "certain" if moved or _in_training(evidence, names) else "measured"
        what = (
            "its statistics are no longer those of the network that its weights come from"
            if moved
            else "train() lets its statistics follow the data"
        )
        return Finding(
            code=self.code,
            severity=severity,
            confidence=confidence,
            sites=norm_places(evidence, names),
            message=(
                f"The norm {quoted(names[0])} is frozen with all weights upstream, and {what}."
                + (f" So with {listed(names[1:])}." if len(names) > 1 else "")
            ),
            evidence={"reason": "drifted" if moved else "awake", "norms": len(names)},
            cures=(_HOLD,),
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
                "it back after every call of it, as an overridden train() does."
                + (f" So with {listed(names[1:])}." if len(names) > 1 else "")
            ),
            evidence={"reason": "woken", "norms": len(names)},
            cures=(_HOLD,),
        )


_HOLD = cure(
    "hold-statistics",
    "keep it in evaluation mode by an overridden train(), and load its statistics again",
    "unsafe",
)


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
