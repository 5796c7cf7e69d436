"""Modes: norms and noise in the wrong mode, and predictions that depend on batch mates (VS401)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from varshift.evidence import Evidence, ModeFacts

from . import _thresholds as thresholds
from ._cures import cure
from ._finding import Cure, Finding, Severity
from ._places import module_place, parting_place
from ._reading import known, listed, quoted
from ._registry import Rule, register

if TYPE_CHECKING:
    from varshift.flow import Parting
    from varshift.model import NormFacts
    from varshift.probe import Change

_EVAL = cure("set-mode", "call model.eval() before evaluation", "safe", training=False)
_TRAIN = cure("set-mode", "call model.train() before training", "safe", training=True)
_REGISTER = cure(
    "register-module",
    "register the module, and let overridden train methods call super().train(mode)",
    "safe",
)

# Reasons for which a norm normalises with the batch in evaluation.
_BATCHED = frozenset({"stuck_training", "batch_statistics", "untracked"})


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
    advice for a norm in evaluation mode whose parameters are still trained.

    With data, a few samples run in evaluation mode in a batch, alone, and with other batch mates. Outputs
    are compared sample by sample; a relative L2 distance above 1e-3 is a warning, above 1e-2 an error.
    Kernels choose other blockings for other batch sizes: how much that is in this network is measured on a
    batch in which every sample occurs twice, and ten times as much passes. Where lengths or a mask are among
    the inputs, or batches differ in length and end in one value, single samples also run at their own length
    and padded to that of their batch: above .01 advice, from .05 a warning, from .25 an error. The runs that
    differ are repeated and compared operation by operation: the finding names the first one that differs,
    with its module and line.

    ## Known limits

    A model whose outputs compare the samples of a batch on purpose depends on batch mates without any fault;
    outputs with one row and one column per sample are left out, and so is a loss that the forward returns.
    Outputs without a dimension of samples cannot be compared. Convolutions read a step or two of what follows
    the end of a sample: on short samples alone that may be worth advice. Graphs and other batches that can be
    cut from the front only are tried with fewer mates only.

    ## Example

    ```python
    class Model(nn.Module):
        def __init__(self):
            self.blocks = [nn.Sequential(...)]  # a plain list: eval() does not reach it
    ```

    ## Cure

    Register modules (`nn.ModuleList`), let overridden `train` methods call `super().train(mode)`, pass
    `training=self.training` to functional norms, and call `model.eval()` before evaluation.

    A norm written by hand that keeps its statistics in plain attributes should register them as buffers: no
    checkpoint holds them otherwise. Give a batch of one the same path as any other. Average over the valid
    steps only, by lengths or a mask.

    ## Cure safety

    Safe, except for norms that never had running statistics: learn them first with
    `varshift.recalibrate(model, loader)`. What leaves the padding out or removes a path of its own computes
    something else than what was trained: train on.

    ## References

    - PyTorch documentation, `torch.nn.Module.train` and `eval`.
    """

    code = "VS401"
    name = "wrong-mode"
    needs = ("modules",)
    uses = ("capture", "trials")

    def applies(self, evidence: Evidence) -> Iterator[Finding]:
        """Yields one finding per cause: what the modules say, and what a few samples show."""
        causes: dict[tuple[str, Severity], list[Finding]] = {}
        for finding in self._modules(evidence):
            causes.setdefault((str(finding.evidence["reason"]), finding.severity), []).append(finding)
        for several in causes.values():
            yield _joined(several)
        yield from self._company(evidence, explained=any(reason in _BATCHED for reason, _ in causes))

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
            elif is_noise and _around_frozen(modes, name):
                continue  # the noise of a backbone that is held in evaluation mode
            elif is_noise:
                text = "was passed in evaluation mode inside a model in training mode: its noise is off"
                yield self._finding(evidence, name, cls, "warning", text, "as_passed", _TRAIN)
            elif _trains(modes, name, facts):
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

    def _company(self, evidence: Evidence, *, explained: bool) -> Iterator[Finding]:
        """What the trials show, where no module above explains it."""
        trials = evidence.trials
        if trials is None or (trials.repeats.drift or 0.0) > thresholds.REPEAT_DIFFERENCE_UNSEEN:
            return  # state that evaluation writes reaches the next sample: VS406 says so
        mates = [c for c in trials.changes if c.kind in ("alone", "mates") and c.matters]
        if mates and not explained:
            yield self._mates_finding(evidence, mates)
        padding = trials.change("padding")
        if padding is not None and padding.matters:
            yield self._padding_finding(evidence, padding)

    def _mates_finding(self, evidence: Evidence, changes: Sequence[Change]) -> Finding:
        """Alone and with other mates: one cause, whichever shows it."""
        # Where both do, what happens to a sample alone may be a special case of a batch of one.
        chosen = changes[-1]
        largest = max(change.difference or 0.0 for change in changes)
        alone_only = all(change.kind == "alone" for change in changes)
        what = "alone" if alone_only else "with other batch mates"
        if len(changes) == 2:
            what = "alone or with other batch mates"
        where = _parting_words(chosen.parting, "in a batch", "alone" if alone_only else "with other mates")
        remedy = (
            "let a batch of one take the same path as others"
            if alone_only
            else "find what works over the batch dimension, and let it use stored statistics"
        )
        return Finding(
            code=self.code,
            severity="error" if largest >= thresholds.COMPANY_ERROR else "warning",
            confidence="measured",
            sites=(parting_place(evidence, chosen.parting),),
            message=(f"In evaluation a sample's output changes {_by(largest)} when it is {what}{where}."),
            evidence={
                "reason": "alone" if alone_only else "batch_mates",
                **{f"{change.kind}_difference": known(change.difference) for change in changes},
                **_parting_evidence(chosen.parting),
            },
            cures=(cure("separate-samples", remedy, "unsafe"),),
        )

    def _padding_finding(self, evidence: Evidence, change: Change) -> Finding:
        difference = change.difference or 0.0
        severity: Severity = "advice"
        if difference >= thresholds.PADDING_ERROR:
            severity = "error"
        elif difference >= thresholds.PADDING_WARNING:
            severity = "warning"
        losses = ""
        if change.losses is not None:
            losses = f" (loss {change.losses[0]:.3g} to {change.losses[1]:.3g})"
        where = _parting_words(change.parting, "at its own length", "with padding")
        return Finding(
            code=self.code,
            severity=severity,
            confidence="measured",
            sites=(parting_place(evidence, change.parting),),
            message=(
                f"In evaluation a sample's output changes {_by(difference)} with the padding that its batch "
                f"gives it{losses}{where}."
            ),
            evidence={
                "reason": "padding",
                "padding_difference": known(difference),
                "losses": None if change.losses is None else [known(value) for value in change.losses],
                **_parting_evidence(change.parting),
            },
            cures=(cure("separate-samples", "leave the padding out, by the lengths or a mask", "unsafe"),),
        )


def _trains(modes: ModeFacts, name: str, facts: NormFacts | None) -> bool:
    """Whether a norm has parameters of its own that train, as far as is known."""
    if modes.trained or modes.frozen:
        return any(parameter.rpartition(".")[0] == name for parameter in modes.trained)
    return facts is None or not facts.frozen_parameters


def _around_frozen(modes: ModeFacts, name: str) -> bool:
    """Whether the module around another one has parameters, all of them frozen."""
    around = name.rpartition(".")[0]
    return (
        bool(around)
        and any(p.startswith(f"{around}.") for p in modes.frozen)
        and not any(p.startswith(f"{around}.") for p in modes.trained)
    )


def _joined(findings: Sequence[Finding]) -> Finding:
    """One finding for all modules that the same thing is wrong with."""
    first = findings[0]
    if len(findings) == 1:
        return first
    sites = tuple(site for finding in findings for site in finding.sites)
    others = listed([site.id.module for site in sites[1:]])
    return replace(
        first,
        sites=sites,
        message=f"{first.message} So does every one of these: {others}.",
        evidence={**first.evidence, "modules": len(sites)},
    )


def _by(difference: float) -> str:
    if not math.isfinite(difference):
        return "to one that is not finite"
    return f"by {difference:.2g} in relative L2"


def _parting_words(parting: Parting | None, first: str, second: str) -> str:
    """Where two runs part, as the end of a sentence."""
    if parting is None:
        return ""
    operation = f"{parting.op} in {quoted(parting.module)}"
    line = f" ({parting.source})" if parting.source is not None else ""
    if parting.only:
        return f": {operation}{line} runs only {first if parting.only == 1 else second}"
    return f", from {operation}{line} on"


def _parting_evidence(parting: Parting | None) -> dict[str, str | None]:
    if parting is None:
        return {}
    source = None if parting.source is None else str(parting.source)
    return {"first_module": parting.module, "first_operation": parting.op, "first_source": source}
