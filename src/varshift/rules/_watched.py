"""What a watched training shows: the findings of the rules that need no pass of the network for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from varshift.evidence import Evidence, History, NormHistory
from varshift.theory import fold

from ._cures import cure
from ._finding import Cure, Finding
from ._places import module_place, norm_places
from ._reading import known, norms_in_order, quoted, so_with, without_none

Form = Literal["recomputed", "perturbed", "pieces", "several"]

_ASLEEP = 3  # moves of the weights in evaluation mode after which nobody is going to call train()
_STRETCHES = 3  # in a row that statistics trail
_WHY: dict[Form, str] = {
    "recomputed": ("as when activation checkpointing runs their forward pass again in the backward pass"),
    "perturbed": (
        "and the weights are written more often than the optimiser writes them: a second forward pass, at "
        "weights that the step takes back, updates them too"
    ),
    "pieces": "gradients are accumulated over pieces of the batch, and each piece updates them",
    "several": "several forward passes: pieces of one batch, several batches, or the same one again",
}
HOLD_STATISTICS = cure(
    "hold-statistics",
    "keep it in evaluation mode by an overridden train(), and load its statistics again",
    "unsafe",
)
CALL_TRAIN = cure(
    "set-mode", "call model.train() at the start of every training step or epoch", "unsafe", training=True
)
SKIP_UPDATE = cure(
    "skip-update",
    "set the momentum of the norms to 0 during the second forward pass",
    "safe",
)
LARGER_PIECES = (
    cure("larger-batch", "larger pieces, and train again", "unsafe"),
    cure(
        "swap-norm",
        "norms that do not look at the batch (GroupNorm), and train again",
        "unsafe",
        to="group_norm",
    ),
)


@dataclass(frozen=True, slots=True)
class _Counted:
    """Norms that are updated several times for one move of the weights."""

    form: Form
    norms: tuple[NormHistory, ...]


def seen(evidence: Evidence) -> History | None:
    """What was seen of the training, where nothing surer is known: a step that was rehearsed is."""
    return evidence.history if evidence.step is None else None


def in_order(evidence: Evidence, history: History) -> list[NormHistory]:
    """The norms that were watched, in the order of the network."""
    names = dict.fromkeys([*norms_in_order(evidence), *history.norms])
    return [history.norms[name] for name in names if name in history.norms]


# -- several updates for one move of the weights ----------------------------------------------------------


def several_updates(evidence: Evidence, code: str) -> Iterator[Finding]:
    """VS305: at most one finding, of the form that most norms have."""
    history = seen(evidence)
    counted = None if history is None else _counted(in_order(evidence, history), history)
    if history is None or counted is None:
        return
    worst = max(counted.norms, key=lambda norm: norm.updates or 0)
    names = [norm.name for norm in counted.norms]
    whose = f"{len(names)} norms are" if len(names) > 1 else f"The norm {quoted(worst.name)} is"
    effective = None if worst.momentum is None else 1 - (1 - worst.momentum) ** (worst.updates or 1)
    text = f"{whose} updated {worst.updates} times for one step of the optimiser, {_WHY[counted.form]}"
    if effective is not None and counted.form in ("recomputed", "perturbed"):
        text += f"; a momentum of {worst.momentum:.3g} acts as {effective:.2g}"
    yield Finding(
        code=code,
        severity="advice" if counted.form == "several" else "warning",
        confidence="measured" if counted.form == "several" else "certain",
        sites=norm_places(evidence, names),
        message=f"{text}.",
        evidence={
            "form": counted.form,
            "updates": worst.updates,
            "norms": len(history.norms),
            "moves": history.moves,
            **without_none({"momentum": worst.momentum, "effective_momentum": effective}),
        },
        cures=_update_cures(counted.form),
    )


def _counted(norms: Sequence[NormHistory], history: History) -> _Counted | None:
    learning = [norm for norm in norms if norm.updates]
    several = tuple(norm for norm in learning if (norm.updates or 0) > 1)
    if not several:
        return None
    usual = {norm.updates or 0 for norm in learning}
    if len(usual) > 1:
        rest = tuple(norm for norm in several if norm.updates == 2 and not _is_shared(norm, learning))
        inside = tuple(norm for norm in rest if norm.recomputed)
        if min(usual) > 1 or not rest:
            return None
        return _Counted("recomputed", inside) if inside else _Counted("several", rest)
    updates = usual.pop()
    if history.calls is not None and history.calls > 1 and updates % history.calls == 0:
        return _Counted("pieces", several)
    if len(several) == 1 and several[0].paths > 1:
        return None
    if history.rewritten and updates % 2 == 0:
        return _Counted("perturbed", several)
    if history.backwards is not None and history.backwards >= max(updates, 3):
        return _Counted("pieces", several)
    return _Counted("several", several)


def _is_shared(norm: NormHistory, norms: Sequence[NormHistory]) -> bool:
    """Whether a norm is called several times, and no part of the network around it is run again."""
    if norm.paths > 1:
        return True
    if norm.recomputed and norm.updates == 2:
        return False
    part = norm.name.rpartition(".")[0]
    while True:
        around = [one for one in norms if one is not norm and one.name.startswith(f"{part}." if part else "")]
        if around or not part:
            break
        part = part.rpartition(".")[0]
    # Two networks that are trained together are called differently often, and are none the worse for it.
    apart = not part and "." in norm.name and (norm.updates or 0) <= 2
    return not apart and any((one.updates or 0) < (norm.updates or 0) for one in around)


def _update_cures(form: Form) -> tuple[Cure, ...]:
    if form == "perturbed":
        return (SKIP_UPDATE,)
    if form == "recomputed":
        words = "a momentum of 1 - sqrt(1 - m) in the norms that are run again"
        return (cure("set-momentum", words, "safe"),)
    return LARGER_PIECES


def shared_norms(evidence: Evidence, code: str) -> Iterator[Finding]:
    """VS403: norms that run several times in a step in which others run once."""
    history = seen(evidence)
    if history is None or evidence.norm_calls is not None:
        return
    norms = in_order(evidence, history)
    learning = [norm for norm in norms if norm.updates]
    several = [norm for norm in learning if (norm.updates or 0) > 1]
    others = {norm.updates for norm in learning}
    shared = [norm for norm in several if _is_shared(norm, learning) and (len(others) > 1 or norm.paths > 1)]
    if history.calls is not None and history.calls > 1:
        shared = [norm for norm in shared if (norm.updates or 0) > history.calls]
    if not shared:
        return
    names = [norm.name for norm in shared]
    worst = max(shared, key=lambda norm: norm.updates or 0)
    yield Finding(
        code=code,
        severity="warning",
        confidence="measured",
        sites=norm_places(evidence, names),
        message=(
            f"The norm {quoted(worst.name)} is called {worst.updates} times in a step: its running "
            "statistics are an average over all of its calls, each of which training normalises apart."
            + so_with([worst.name, *(name for name in names if name != worst.name)])
        ),
        evidence={"way": "calls", "distributions": worst.updates, "paths": worst.paths},
        cures=(cure("split-norm", "a norm of its own for each call, and train again", "unsafe"),),
        step="small-batch",
    )


# -- modes and frozen parts -------------------------------------------------------------------------------


def wrong_modes(evidence: Evidence, code: str) -> Iterator[Finding]:
    """VS402: a freeze that was undone, frozen parts that learn statistics, training in evaluation mode."""
    history = seen(evidence)
    if history is None:
        return
    norms = in_order(evidence, history)
    # One that is frozen by its class stays as it is in training mode, too.
    woken = [n for n in norms if n.held and n.training and (n.moved or n.momentum == 0)]
    if len(woken) == len(norms) and not any(norm.frozen for norm in woken):
        woken = []  # the whole network was handed over in evaluation mode
    awake = [norm for norm in norms if norm.frozen and norm.moved and norm.training and norm not in woken]
    if woken:
        yield _frozen_finding(
            evidence,
            code,
            woken,
            "woken",
            f"was put in evaluation mode, and from step {history.woken_at} on it is in training mode again: "
            "train() wakes it",
        )
    elif awake:
        yield _frozen_finding(
            evidence,
            code,
            awake,
            "awake",
            "is frozen with the weights around it, and training moves its statistics all the same",
        )
    if history.asleep >= _ASLEEP:
        yield _asleep(evidence, code, history, norms)
    elif history.quiet_noise and not history.awake_noise:
        yield _quiet(evidence, code, history)


def _frozen_finding(
    evidence: Evidence, code: str, norms: Sequence[NormHistory], reason: str, what: str
) -> Finding:
    names = [norm.name for norm in norms]
    more = so_with(names)
    return Finding(
        code=code,
        severity="warning",
        confidence="certain",
        sites=norm_places(evidence, names),
        message=f"The norm {quoted(names[0])} {what}.{more}",
        evidence={"reason": reason, "norms": len(names), "seen": True},
        cures=(HOLD_STATISTICS,),
        step="statistics",
    )


def _asleep(evidence: Evidence, code: str, history: History, norms: Sequence[NormHistory]) -> Finding:
    names = [norm.name for norm in norms]
    if names:
        what = f"the norm {quoted(names[0])} trains on stored statistics"
        what += f", and {len(history.quiet_noise)} noise modules do nothing" if history.quiet_noise else ""
        sites = norm_places(evidence, names)
    else:
        what = f"{len(history.quiet_noise)} noise modules do nothing"
        sites = tuple(module_place(evidence, name, "") for name in history.quiet_noise)
    return Finding(
        code=code,
        severity="warning",
        confidence="certain",
        sites=sites,
        message=(
            f"Since step {history.asleep_since} the network trains in evaluation mode: {what}. An evaluation "
            "that calls eval() has to be followed by train()."
        ),
        evidence={
            "reason": "asleep",
            "since": history.asleep_since,
            "moves": history.asleep,
            "quiet_noise": len(history.quiet_noise),
        },
        cures=(CALL_TRAIN,),
    )


def _quiet(evidence: Evidence, code: str, history: History) -> Finding:
    names = history.quiet_noise
    return Finding(
        code=code,
        severity="warning",
        confidence="certain",
        sites=tuple(module_place(evidence, name, "") for name in names),
        message=(
            f"The noise {quoted(names[0])} is in evaluation mode while the weights next to it train: it "
            "never acts, as in a pretrained network that was handed over in evaluation mode." + so_with(names)
        ),
        evidence={"reason": "quiet", "quiet_noise": len(names), "moves": history.moves},
        cures=(CALL_TRAIN,),
    )


# -- the statistics themselves ----------------------------------------------------------------------------


def broken_statistics(evidence: Evidence, code: str) -> Iterator[Finding]:
    """VS203: statistics that stopped being numbers, and since when."""
    history = evidence.history
    broken = [] if history is None else [n for n in in_order(evidence, history) if n.broken_at is not None]
    if history is None or not broken:
        return
    broken.sort(key=lambda norm: norm.broken_at or 0)
    names, step = [norm.name for norm in broken], broken[0].broken_at
    since = (
        f"; {history.skipped} {'step' if history.skipped == 1 else 'steps'} since then left the weights as "
        "they were, as a gradient scaler does"
        if history.skipped
        else ""
    )
    yield Finding(
        code=code,
        severity="error",
        confidence="certain",
        sites=norm_places(evidence, names),
        message=(
            f"The statistics of the norm {quoted(names[0])} are not finite since step {step}: a batch, or a "
            f"signal in it, was not{since}. Every prediction in evaluation mode is lost." + so_with(names)
        ),
        evidence={"since": step, "count": len(names), "skipped": history.skipped},
        cures=(cure("recalibrate", "skip that batch, and re-estimate the statistics", "safe"),),
        step="statistics",
    )


def trailing_statistics(evidence: Evidence, code: str) -> Iterator[Finding]:
    """VS202: running statistics that trail the batches for several stretches in a row."""
    history = evidence.history
    if history is None or evidence.measurement is not None:
        return
    norms = [norm for norm in in_order(evidence, history) if norm.trailing >= _STRETCHES]
    norms = [norm for norm in norms if norm.broken_at is None]
    if not norms:
        return

    def size(norm: NormHistory) -> float:
        return max(fold(norm.variance_ratio or 1.0), 1 + (norm.mean_offset or 0.0))

    norms.sort(key=size, reverse=True)
    worst, names = norms[0], [norm.name for norm in norms]
    yield Finding(
        code=code,
        severity="warning",
        confidence="measured",
        sites=norm_places(evidence, names),
        message=(
            f"The running statistics of the norm {quoted(worst.name)} trail the batches: those of late have "
            f"{worst.variance_ratio or 1.0:.3g} times the running variance, and means "
            f"{worst.mean_offset or 0.0:.2g} standard deviations off. An evaluation now would use old "
            "statistics." + so_with(names)
        ),
        evidence=without_none(
            {
                "variance_ratio": known(worst.variance_ratio),
                "mean_offset": known(worst.mean_offset),
                "momentum": worst.momentum,
                "stretches": worst.trailing,
                "norms": len(names),
            }
        ),
        cures=(cure("recalibrate", "re-estimate the statistics before each evaluation", "safe"),),
        step="statistics",
    )
