"""The front doors of surgery: `fix` on a copy, `fix_` in place, and `apply_plan` for what was done before."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any, ParamSpec

import torch
from torch import nn

from varshift._check import check
from varshift._errors import DataError, ModelError, VarshiftError
from varshift.evidence import Subject, is_example
from varshift.fixes import (
    Cured,
    Failure,
    Patient,
    Plan,
    Refused,
    Surgery,
    Treatment,
    courses_of,
    sync_optimizer,
    transplant,
    versions_of,
    wishes_of,
)
from varshift.flow import Capture, capture
from varshift.model import (
    Forward,
    Guard,
    loader_of,
    network_of,
    one_at_a_time,
    shadowed,
    twin_of,
    twin_optimizer,
)
from varshift.moments import stated_shape
from varshift.report import Report
from varshift.rules import Cure, resolve_selection

if TYPE_CHECKING:
    from varshift.probe import Loss, Progress

Cures = Sequence[str | Cure] | Mapping[str, Mapping[str, Any]]


def fix(
    model: nn.Module,
    report: Report | None = None,
    *,
    select: Sequence[str] | None = None,
    ignore: Sequence[str] | None = None,
    intended: Sequence[str] = (),
    unsafe: bool = False,
    optimizer: torch.optim.Optimizer | None = None,
    loader: Iterable[Any] | None = None,
    cures: Cures | None = None,
    example_inputs: Any = None,
    shape: Sequence[int] | Sequence[Sequence[int]] | None = None,
    deploy: Iterable[Any] | None = None,
    reference: nn.Module | Sequence[nn.Module] | None = None,
    step: Callable[[nn.Module, Any], Any] | None = None,
    forward: Forward | None = None,
    loss: Loss | None = None,
    max_batches: int = 16,
    device: torch.device | str | None = None,
    seed: int = 0,
    recheck: bool = True,
    progress: Progress | None = None,
) -> Cured:
    """Cures a copy of a network: for each finding the first cure that applies, proven and checked again.

    The copy is of the user's own class, with its weights, hooks and flags. A cure changes single places:
    modules on all of their paths, attributes, calls inside methods. A second capture proves that exactly
    those changed. Then the check runs again: a cure whose finding is still there is taken back, and the next
    one is tried. What cannot be cured is listed with the reason and the edit to make by hand; where new
    running statistics are measured to lower the loss in spite of it, they are kept.

    By default only safe cures are used: those that leave the deployed function as it is, or change
    statistics only. With `unsafe`, those that need another training come first, for they remove the cause.
    Errors and warnings are treated, advice only where `select` names it. A healthy network is not changed.

    Args:
        model: The network. One that is compiled or wrapped (``DataParallel``, ``DistributedDataParallel``) is
            refused: fix first, wrap after.
        report: What `varshift.check` found; by default it is checked now.
        select: Codes or prefixes of the findings to treat, all by default.
        ignore: Codes or prefixes of the findings to leave alone.
        intended: Modules and sites whose noise is meant to act in evaluation too, as in `check`.
        unsafe: Whether cures that need another training are allowed.
        optimizer: The optimiser of the network. `Cured.optimizer` is a copy of it for the cured network: the
            state of untouched parameters is bit for bit the same, replaced ones of the same shape take it
            over, and those that left are dropped; `Cured.changes` names them.
        loader: Batches as the model is trained on them: for the check, and to re-estimate statistics.
        cures: Instead of what the findings ask for: the cures to carry out, by code (``["remove-noise"]``),
            as `varshift.Cure` with target and options, or as a mapping of codes to options
            (``{"swap-noise": {"to": "uniform"}}``). Without a target a cure acts wherever it can.
        example_inputs: Instead of a loader, one batch without targets.
        shape: Instead of a loader, the shape of an input without the batch dimension, or several.
        deploy: Batches as deployment prepares them, as in `check`.
        reference: The network or networks that the weights come from, as in `check`.
        step: One training step, a function of model and batch, as in `check`.
        forward: How the model is called with a batch, as in `check`.
        loss: Function of outputs and targets, as in `check`.
        max_batches: Number of batches to check with.
        device: Where to put the batches; by default the model's device.
        seed: Seed of the checks.
        recheck: Whether to check the result. Without it cures are proven to be carried out, not to help.
        progress: Called with stage, steps done and steps in all.

    Returns:
        The cured copy with the list of changes, the plan that repeats them, and what failed.

    Raises:
        ModelError: If the model is wrapped or compiled, cannot be copied, or cannot be run.
        DataError: If the loader yields nothing usable.
        VarshiftError: If a code or an option is unknown.

    Example:
        >>> from torch import nn
        >>> import varshift as vs
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 2))
        >>> cured = vs.fix(net, shape=(4,), cures=["remove-noise"])
        >>> print(type(cured.model[1]).__name__, "|", cured.changes[0].before)
        Identity | Dropout(p=0.5)
    """
    return _cured(dict(locals()))


_Arguments = ParamSpec("_Arguments")


def _as(
    function: Callable[_Arguments, Cured],
) -> Callable[[Callable[..., Cured]], Callable[_Arguments, Cured]]:
    """Gives a function the signature of another one."""

    def decorate(decorated: Callable[..., Cured]) -> Callable[_Arguments, Cured]:
        vars(decorated)["__signature__"] = inspect.signature(function)
        return decorated

    return decorate


@_as(fix)
def fix_(*values: Any, **named: Any) -> Cured:
    """Cures a network in place, all or nothing; otherwise as `fix`.

    Everything is tried on a copy first. Only what worked there is done to the model and the optimiser, in one
    go: an error or Ctrl-C leaves both bit for bit as they were.

    Returns:
        As `fix`; `Cured.model` is the model itself, and `Cured.undo` gives it back as it was.

    Raises:
        ModelError: As in `fix`, or if the network itself, not one of its modules, would have to be replaced.
        DataError: As in `fix`.
        VarshiftError: As in `fix`.
    """
    bound = inspect.signature(fix).bind(*values, **named)
    bound.apply_defaults()
    tried = _cured(bound.arguments)
    return transplant(tried, bound.arguments["model"], bound.arguments["optimizer"])


def apply_plan(
    model: nn.Module,
    plan: Plan | str | os.PathLike[str],
    *,
    optimizer: torch.optim.Optimizer | None = None,
    strict: bool = True,
) -> Cured:
    """Repeats on a fresh model what `fix` did to another one of its kind, without data and without a check.

    Places are found by module path, function and the text of the call, so a plan outlives a version of the
    library that the network comes from. Statistics are no part of a plan: load the weights of the cured
    network afterwards.

    Args:
        model: The network, as built; it is copied.
        plan: The plan, its file or its text.
        optimizer: The optimiser of the network, as in `fix`.
        strict: Whether a place that is missing or is another one by now is an error; otherwise it is listed
            in `Cured.failures`, and the rest is done.

    Returns:
        The changed copy.

    Raises:
        ModelError: If a place is not there (with `strict`), or the model is wrapped or compiled.
        VarshiftError: If the plan cannot be read.

    Example:
        >>> from torch import nn
        >>> import varshift as vs
        >>> def build():
        ...     return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 2))
        >>> plan = vs.fix(build(), shape=(4,), cures=["remove-noise"]).plan
        >>> vs.apply_plan(build(), plan.to_json()).model[1]
        Identity()
    """
    if not isinstance(plan, Plan):
        plan = Plan.from_json(plan)
    twin, copied, notes = _copied(_own(model), optimizer)
    surgery = Surgery(twin, optimizer=copied)
    changes, failures = [], []
    for edit in plan.edits:
        if edit.acts_on == "loader" or (edit.acts_on == "optimizer" and copied is None):
            notes.append(f"'{edit.op}' changes the {edit.acts_on}: see to that where the network is trained.")
            continue
        mark = surgery.mark()
        try:
            changes += edit.apply(surgery)
        except Refused as reason:
            if strict:
                raise
            surgery.undo_to(mark)
            failures.append(Failure("", ((edit.op, str(reason)),)))
    if copied is not None:
        changes += sync_optimizer(copied, surgery)
    return Cured(
        surgery.network,
        changes=tuple(changes),
        plan=plan,
        failures=tuple(failures),
        notes=tuple(notes),
        optimizer=copied,
        way_back=surgery.undo,
    )


def _own(model: Any) -> nn.Module:
    """The network, refused where something is wrapped around it that would keep the old one."""
    network = network_of(model)
    if network is not model:
        raise ModelError(
            f"model is a {type(model).__name__} around a {type(network).__name__}: fix the network inside, "
            "and wrap or compile the result (fix first, wrap after)."
        )
    for name, module in network.named_modules():
        if getattr(module, "_compiled_call_impl", None) is not None:
            raise ModelError(
                f"{repr(name) if name else 'model'} is compiled (module.compile()): fix a network that is "
                "not, and compile the result."
            )
    return network


def _copied(
    network: nn.Module, optimizer: torch.optim.Optimizer | None
) -> tuple[nn.Module, torch.optim.Optimizer | None, list[str]]:
    """Copies of a network and its optimiser, and what is to be said of them."""
    twin, notes = twin_of(network)
    return twin, None if optimizer is None else twin_optimizer(optimizer, network, twin), list(notes)


# What the checks and captures of a treatment are given; the loader and the optimiser change meanwhile.
_SETTINGS = (
    *("example_inputs", "shape", "deploy", "reference", "step", "intended"),
    *("forward", "loss", "max_batches", "device", "seed", "progress"),
)


def _cured(arguments: Mapping[str, Any]) -> Cured:
    """Treats a copy of a network; the network itself is only checked."""
    network, report = _own(arguments["model"]), arguments["report"]
    select, ignore, cures = (arguments[name] for name in ("select", "ignore", "cures"))
    loader = loader_of(arguments["loader"])
    settings = {name: arguments[name] for name in _SETTINGS}
    settings["deploy"] = loader_of(settings["deploy"], argument="deploy", trains=False)
    if report is not None and not isinstance(report, Report):
        raise VarshiftError(f"report is a {type(report).__name__}: pass what varshift.check returned.")
    wishes = None if cures is None else wishes_of(cures)
    codes = resolve_selection(select, ignore)
    if loader is not None and is_example(network, loader, settings["forward"]):
        if settings["example_inputs"] is not None:
            raise DataError("loader and example_inputs are both example inputs: pass one of them.")
        loader, settings["example_inputs"] = None, loader
    if isinstance(loader, Iterator):
        loader = list(islice(loader, settings["max_batches"]))  # it can be gone through once only
    if loader is None and settings["example_inputs"] is None and settings["shape"] is None:
        settings["shape"] = _stated(network, settings["forward"])
    if report is None and (wishes is None or (arguments["recheck"] and loader is not None)):
        optimizer = arguments["optimizer"]
        report = check(network, loader, **settings, optimizer=optimizer, select=select, ignore=ignore)
    twin, optimizer, notes = _copied(network, arguments["optimizer"])
    courses = wishes
    if courses is None:
        assert report is not None
        findings = [finding for finding in report.findings if finding.code in codes]
        relief = loader is not None and report.gap is not None and report.gap.metric == "loss"
        courses = courses_of(findings, unsafe=arguments["unsafe"], advice=select is not None, relief=relief)
    cured = Cured(twin, before=report, notes=tuple(notes), optimizer=optimizer, loader=loader)
    if not courses:
        return cured
    surgery = Surgery(twin, loader, optimizer)

    def check_again(changed: nn.Module, data: Any) -> Report:
        return check(changed, data, **settings, optimizer=optimizer)

    rechecks = arguments["recheck"] and report is not None
    patient = _patient(twin, report, loader, settings)
    treatment = Treatment(patient, courses, check_again if rechecks else None, surgery)
    try:
        treatment.run()
    except BaseException:
        surgery.undo()
        raise
    changes = treatment.changes
    if optimizer is not None:
        changes += sync_optimizer(optimizer, surgery)
    return replace(
        cured,
        model=surgery.network,
        changes=changes,
        plan=Plan(treatment.edits, changes, type(network).__name__, versions_of(network)),
        after=treatment.after if treatment.edits else None,
        failures=treatment.failures,
        notes=(*notes, *treatment.notes),
        loader=surgery.data,
        recalibration=treatment.recalibration,
        way_back=surgery.undo,
    )


def _stated(network: nn.Module, forward: Forward | None) -> Any:
    try:
        return stated_shape(network, forward)
    except VarshiftError:
        return None


def _patient(twin: nn.Module, report: Report | None, loader: Any, settings: Mapping[str, Any]) -> Patient:
    """The copy with its capture and the example that it was captured with."""
    given = {name: value for name, value in settings.items() if value is not None}
    forward = settings["forward"]
    subject = Subject(
        twin,
        loader=loader,
        **{name: settings[name] for name in ("example_inputs", "shape", "forward", "loss")},
        **{name: settings[name] for name in ("max_batches", "device", "seed")},
    )
    if not subject.has_inputs:
        return Patient(twin, report, settings=given)
    with one_at_a_time, Guard(seed=subject.seed) as guard, guard, guard:
        guard.keep(loader)
        subject.draw(1)
        if subject.batches:
            with shadowed(twin, seed=subject.seed) as shadow, shadow, shadow:
                subject.shadow = shadow
                subject.settle([], measures=False)
        example = subject.example()

    def recapture(network: nn.Module) -> Capture:
        return capture(network, example, forward=forward)

    return Patient(twin, report, recapture(twin), example, loader, given, recapture, presumes=True)
