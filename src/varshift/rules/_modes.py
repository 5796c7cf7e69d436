"""Modes: norms and noise in the wrong mode, and predictions that depend on batch mates (VS401)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from varshift.evidence import Evidence

from . import _thresholds as thresholds
from ._cures import cure
from ._finding import Cure, Finding, Severity
from ._places import NETWORK, module_place
from ._reading import known, quoted
from ._registry import Rule, register

_EVAL = cure("set-mode", "call model.eval() before evaluation", "safe", training=False)
_TRAIN = cure("set-mode", "call model.train() before training", "safe", training=True)
_REGISTER = cure(
    "register-module",
    "register the module, and let overridden train methods call super().train(mode)",
    "safe",
)


@register
class WrongMode(Rule):
    """A norm or noise module is in the wrong mode for the phase, or predictions depend on batch mates.

    ## What it does

    Finds norm and noise modules that `model.eval()` does not reach, norms that normalise with batch
    statistics in evaluation, norms without running statistics, and single modules whose mode differs from
    the model's.

    ## Why it matters

    A norm in training mode during evaluation normalises each sample with its batch mates: the prediction
    for one sample changes with its company, batches of one fail, and every evaluation overwrites the
    running statistics. Noise in evaluation mode during training regularises nothing.

    ## How it is measured

    Certain, from the modules' flags after `eval()` and from the network as captured in evaluation mode:
    errors. Norms built with `track_running_stats=False`, or told so later (they then still use the statistics
    they own): a warning. Modules as the model was passed in: a
    warning where a module trains inside a model in evaluation or noise is off inside a model in training;
    advice for a norm in evaluation mode whose parameters are still trained. With data, each sample's output
    among all of its batch mates is compared with that among half of them, in evaluation: where nothing else
    explains it, a relative L2 distance above 1e-3 is an error.

    ## Known limits

    A model that compares the samples of a batch on purpose (a contrastive loss in its forward) depends on
    batch mates without any fault.

    ## Example

    ```python
    class Model(nn.Module):
        def __init__(self):
            self.blocks = [nn.Sequential(...)]  # a plain list: eval() does not reach it
    ```

    ## Cure

    Register modules (`nn.ModuleList`), let overridden `train` methods call `super().train(mode)`, pass
    `training=self.training` to functional norms, and call `model.eval()` before evaluation.

    ## Cure safety

    Safe, except for norms that never had running statistics: learn them first with
    `varshift.recalibrate(model, loader)`.

    ## References

    - PyTorch documentation, `torch.nn.Module.train` and `eval`.
    """

    code = "VS401"
    name = "wrong-mode"
    needs = ("modules",)
    uses = ("capture", "measurement")

    def applies(self, evidence: Evidence) -> Iterator[Finding]:
        """Yields one finding per module, or one for the model where only its answers show it."""
        found = False
        for finding in self._modules(evidence):
            found = True
            yield finding
        if not found:
            yield from self._batch_mates(evidence)

    def _modules(self, evidence: Evidence) -> Iterator[Finding]:
        stuck = dict(evidence.modes.stuck_training) if evidence.modes else {}
        noise = evidence.modes.noise if evidence.modes else ()
        for name, cls in stuck.items():
            text = "stays in training mode after model.eval()"
            text += ": its noise stays on" if name in noise else ": it normalises with the batch"
            yield self._finding(evidence, name, cls, "error", text, "stuck_training", _REGISTER)
        for site in evidence.eval.norms if evidence.eval else ():
            if site.name in stuck or site.kind == "instance_norm" or not site.batch_statistics:
                continue
            if site.tracked:
                text = "normalises with batch statistics in evaluation, although it has running statistics"
                remedy = cure(
                    "follow-mode",
                    "pass training=self.training to it, and leave track_running_stats as built",
                    "safe",
                )
                yield self._finding(evidence, site.name, site.cls, "error", text, "batch_statistics", remedy)
            else:
                text = "has no running statistics: predictions depend on batch mates"
                remedy = cure(
                    "track-statistics", "build it with track_running_stats=True, and recalibrate", "unsafe"
                )
                yield self._finding(evidence, site.name, site.cls, "warning", text, "untracked", remedy)
        yield from self._untracked(evidence)
        yield from self._as_passed(evidence, stuck)

    def _untracked(self, evidence: Evidence) -> Iterator[Finding]:
        for name, facts in evidence.norms.items():
            if facts.live and not facts.tracks:
                text = (
                    "has track_running_stats=False but still owns running statistics: "
                    "training does not update them, and evaluation uses them"
                )
                remedy = cure("track-statistics", "set track_running_stats=True, and recalibrate", "safe")
                yield self._finding(evidence, name, facts.cls, "warning", text, "not_tracking", remedy)

    def _as_passed(self, evidence: Evidence, stuck: dict[str, str]) -> Iterator[Finding]:
        modes = evidence.modes
        if modes is None:
            return
        for name, cls in modes.as_passed.items():
            is_noise = name in modes.noise
            facts = evidence.norms.get(name)
            if name in stuck:
                continue
            if not modes.root_training:
                text = "was passed in training mode inside a model in evaluation mode"
                yield self._finding(evidence, name, cls, "warning", text, "as_passed", _EVAL)
            elif is_noise:
                text = "was passed in evaluation mode inside a model in training mode: its noise is off"
                yield self._finding(evidence, name, cls, "warning", text, "as_passed", _TRAIN)
            elif facts is None or not facts.frozen_parameters:
                text = "was passed in evaluation mode inside a training model, and its parameters still train"
                remedy = cure("freeze-parameters", "freeze its parameters too, or call model.train()", "safe")
                yield self._finding(evidence, name, cls, "advice", text, "as_passed", remedy)

    def _finding(
        self,
        evidence: Evidence,
        name: str,
        cls: str,
        severity: Severity,
        text: str,
        reason: str,
        remedy: Cure,
    ) -> Finding:
        kind = "noise" if evidence.modes and name in evidence.modes.noise else "norm"
        # A functional norm has no module of its own: the module that calls it is named.
        own = name in evidence.norms or kind == "noise"
        subject = f"The {kind} module {quoted(name)}" if own else f"The {kind} at {quoted(name)}"
        if not name:
            subject = f"A {kind} in the model itself"
        place = module_place(evidence, name, cls)
        targeted = remedy if remedy.code == "set-mode" else replace(remedy, target=place.id)
        return Finding(
            code=self.code,
            severity=severity,
            confidence="certain",
            sites=(place,),
            message=f"{subject} {text}.",
            evidence={"reason": reason},
            cures=(targeted,),
        )

    def _batch_mates(self, evidence: Evidence) -> Iterator[Finding]:
        measurement = evidence.measurement
        difference = known(measurement.batch_mate_difference) if measurement else None
        if measurement is None or difference is None or difference <= thresholds.BATCH_MATE_DIFFERENCE:
            return
        repeat = known(measurement.eval_repeat_difference) or 0.0
        if repeat > thresholds.REPEAT_DIFFERENCE or (evidence.eval and evidence.eval.noises):
            return  # noise makes any two runs differ: VS106 says so
        yield Finding(
            code=self.code,
            severity="error",
            confidence="measured",
            sites=(NETWORK,),
            message=(
                f"In evaluation a sample's output changes by {difference:.2g} in relative L2 with half of "
                "its batch mates: something normalises or compares over the batch."
            ),
            evidence={"reason": "batch_mates", "batch_mate_difference": difference},
            cures=(
                cure(
                    "separate-samples",
                    "find what works over the batch dimension, and let it use stored statistics",
                    "unsafe",
                ),
            ),
        )
