"""The front door: one call from a model and its data to a report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from varshift._errors import DataError, ModelError, VarshiftError
from varshift._repeat import call_text
from varshift.evidence import Gathering, Subject, is_example
from varshift.model import Forward, loader_of, network_of
from varshift.report import Report, build_report
from varshift.rules import examine, resolve_selection

if TYPE_CHECKING:
    from varshift.probe import Loss, Progress

Shape = Sequence[int]


def check(
    model: nn.Module,
    loader: Iterable[Any] | None = None,
    *,
    deploy: Iterable[Any] | None = None,
    reference: nn.Module | Sequence[nn.Module] | None = None,
    step: Callable[[nn.Module, Any], Any] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    history: Report | None = None,
    example_inputs: Any = None,
    shape: Shape | Sequence[Shape] | None = None,
    forward: Forward | None = None,
    loss: Loss | None = None,
    max_batches: int = 16,
    device: torch.device | str | None = None,
    estimator: Literal["pooled", "ema"] = "pooled",
    select: Sequence[str] | None = None,
    ignore: Sequence[str] | None = None,
    intended: Sequence[str] = (),
    seed: int = 0,
    target: str | None = None,
    progress: Progress | None = None,
) -> Report:
    """Finds out why a network is good in ``train()`` and bad in ``eval()``.

    With a loader the network is run in all its states on the same batches and every norm is measured. With
    example inputs or a shape only, the network is captured and the placement rules run. With neither, only
    what the modules say about themselves is looked at. Only what the selected rules need is run. The report
    says what could not be seen.

    No pass runs on the model itself, but on a copy of it. Model, data, random states and the loader's
    generators are left exactly as they were found.

    Args:
        model: The model; compiled models and data-parallel wrappers are unwrapped.
        loader: Batches as the model is trained on: ``x``, ``(x, y)``, a mapping, or whatever `forward` takes.
            Pass the training data with its augmentation: running statistics are compared with it. A tensor, a
            tuple of tensors or a mapping of tensors is taken for `example_inputs`. A data module or a trainer
            of Lightning and fastai's ``DataLoaders`` give the loader that they train on.
        deploy: Batches as deployment prepares them, where that differs from training: the step "transform" of
            the gap is then measured too.
        reference: The network that the weights come from, or several: the source of a moving average or of a
            copy, the networks that were averaged or merged, the clients of a federated round. Whether the
            statistics came along is then known. It is only read.
        step: One training step, a function of model and batch with its optimiser inside. It is run twice on
            copies of the model and of all that it holds; a step that could leave a trace is not run.
        optimizer: The optimiser of the training: what its weight decay does to norms and to weights whose
            scale does not matter is then looked at. It is only read.
        history: The report of `varshift.watch`: what it saw of the training is evidence, too.
        example_inputs: Instead of a loader, one batch without targets: a tensor, or a tuple or mapping of
            tensors.
        shape: Instead of a loader, the shape of an input without the batch dimension, or several of them.
        forward: Function of model and batch that runs the model, and returns its outputs or, as a tensor
            without dimensions, the loss itself. By default the inputs are the first items of a batch, as many
            as ``model.forward`` requires, or the entries of a mapping that it accepts.
        loss: Function of outputs and targets, returning one number. By default cross-entropy for class
            indices, mean squared error for float targets, the model's own ``.loss``; without targets the
            outputs of the states are compared.
        max_batches: Number of batches to draw; they are kept in memory and used in every state.
        device: Where to put the batches; by default the model's device.
        estimator: ``"pooled"``, or ``"ema"`` for the measuring protocol of Li et al. 2018.
        select: Codes or prefixes of the rules to run, all by default.
        ignore: Codes or prefixes of the rules not to run.
        intended: Modules and sites whose noise is meant to act in evaluation too, by name:
            ``["decoder.sample", "blocks.2:dropout#2"]``; a module names everything inside it.
        seed: Seed of the noise and of the loader's shuffling.
        target: What the report calls the model; by default its class.
        progress: Called with stage, steps done and steps in all (None when unknown).

    Returns:
        The report, plain data; ``print(report)`` shows it.

    Raises:
        ModelError: If the model cannot be run on the inputs, a reference is no module, or `optimizer` no
            optimiser.
        DataError: If the loader yields nothing, or inputs that are not finite or of an unknown structure, or
            is a single batch with targets.
        VarshiftError: If a rule code is unknown, or `intended` is no list of names.
    """
    network = network_of(model)
    codes = resolve_selection(select, ignore)
    loader, deploy = loader_of(loader), loader_of(deploy, argument="deploy", trains=False)
    if loader is not None and is_example(network, loader, forward):
        if example_inputs is not None:
            raise DataError("loader and example_inputs are both example inputs: pass one of them.")
        loader, example_inputs = None, loader
    if deploy is not None and loader is None:
        raise DataError("deploy= is compared with the training data: pass a loader too.")
    references = _references(reference, network)
    if step is not None and not callable(step):
        raise VarshiftError(f"step={step!r} must be a function of model and batch that does one step.")
    if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
        raise ModelError(f"optimizer is a {type(optimizer).__name__}: pass a torch.optim.Optimizer.")
    if history is not None and not isinstance(history, Report):
        raise VarshiftError(f"history is a {type(history).__name__}: pass the report of varshift.watch.")
    arguments = dict(locals())
    gathering = Gathering(
        Subject(
            network,
            loader=loader,
            example_inputs=example_inputs,
            shape=shape,
            forward=forward,
            loss=loss,
            max_batches=max_batches,
            device=device,
            estimator=estimator,
            seed=seed,
            progress=progress,
            deploy=deploy,
            intended=_names(intended),
            references=references,
            step=step,
            optimizer=optimizer,
            history=history.history if history is not None else None,
        )
    )
    findings, runs = examine(gathering, codes)
    return build_report(
        target=target or type(network).__name__,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        evidence=gathering.evidence,
        capture_method=gathering.capture_method,
        findings=findings,
        limits=gathering.limits,
        rules=runs,
        provided=gathering.runs(),
        repeat=call_text(check, arguments, leave_out="progress"),
    )


def _names(intended: Sequence[str]) -> tuple[str, ...]:
    if isinstance(intended, str) or not all(isinstance(name, str) for name in intended):
        raise VarshiftError(
            f"intended={intended!r} must be a list of names of modules or sites, as in ['decoder.sample']."
        )
    return tuple(intended)


def _references(
    reference: nn.Module | Sequence[nn.Module] | None, network: nn.Module
) -> tuple[nn.Module, ...]:
    """The other networks, unwrapped."""
    if reference is None:
        return ()
    several = list(reference) if isinstance(reference, (list, tuple)) else [reference]
    names = [f"reference[{i}]" if len(several) > 1 else "reference" for i in range(len(several))]
    found = tuple(network_of(one, argument=name) for one, name in zip(several, names, strict=True))
    if any(one is network for one in found):
        raise ModelError(
            "reference is the model itself: pass the network that its weights come from, as it was or is."
        )
    return found
