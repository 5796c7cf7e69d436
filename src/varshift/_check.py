"""The front door: one call from a model and its data to a report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from varshift.flow import Capture, capture
from varshift.model import (
    Forward,
    NormFacts,
    batch_size,
    find_norms,
    network_of,
    norm_facts,
    preserved,
    require_values,
)
from varshift.moments import Prediction, predict_captured, samples_for_prediction
from varshift.probe import (
    Measurement,
    ModeFacts,
    draw_batches,
    loader_facts,
    measure,
    mode_facts,
    model_device,
)
from varshift.report import Report, build_report
from varshift.rules import Evidence, run_rules

if TYPE_CHECKING:
    from varshift.probe import Loss, Progress

Shape = Sequence[int]
_EXAMPLES = 64  # samples made up for a shape; a capture uses as many as suit their size


def check(
    model: nn.Module,
    loader: Iterable[Any] | None = None,
    *,
    example_inputs: Any = None,
    shape: Shape | Sequence[Shape] | None = None,
    forward: Forward | None = None,
    loss: Loss | None = None,
    max_batches: int = 16,
    device: torch.device | str | None = None,
    estimator: Literal["pooled", "ema"] = "pooled",
    select: Sequence[str] | None = None,
    ignore: Sequence[str] | None = None,
    seed: int = 0,
    target: str | None = None,
    progress: Progress | None = None,
) -> Report:
    """Finds out why a network is good in ``train()`` and bad in ``eval()``.

    With a loader the network is run in all its states on the same batches and every norm is measured. With
    example inputs or a shape only, the network is captured and the placement rules run. With neither, only
    what the modules say about themselves is looked at. The report says what could not be seen.

    The model is left exactly as it was found: flags, buffers, hooks and random states.

    Args:
        model: The model; compiled models and data-parallel wrappers are unwrapped.
        loader: Batches as the model is trained on: ``x``, ``(x, y)``, a mapping, or whatever `forward` takes.
            Pass the training data with its augmentation: running statistics are compared with it.
        example_inputs: Instead of a loader, one batch without targets: a tensor or a tuple of tensors.
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
        seed: Seed of the noise and of the loader's shuffling.
        target: What the report calls the model; by default its class.
        progress: Called with stage, steps done and steps in all (None when unknown).

    Returns:
        The report, plain data; ``print(report)`` shows it.

    Raises:
        ModelError: If the model cannot be run on the inputs.
        DataError: If the loader yields nothing, or inputs that are not finite or of an unknown structure.
        VarshiftError: If a rule code is unknown.
    """
    network = network_of(model)
    if loader is not None:
        require_values(network)
    known = Evidence(train=None, eval=None)
    run_rules(known, select, ignore)  # an unknown code should not cost a measurement
    norms = find_norms(network)
    learned = any(norm.readable and not norm.never_moved for norm in norms)
    device = device or model_device(network)
    captured: Capture | None = None
    measurement: Measurement | None = None
    prediction: Prediction | None = None
    limits: list[str] = []
    with preserved(network, seed=seed):
        batches: tuple[Any, ...] = ()
        if loader is not None:
            batches = draw_batches(loader, max_batches, device)
            example = batches[0]
        else:
            example = _example(network, example_inputs, shape, device, _EXAMPLES if learned else 2)
        if example is not None:
            if progress is not None:
                progress("capturing the network", 0, None)
            samples = samples_for_prediction(example) if learned else 2
            captured = capture(network, example, forward=forward, samples=samples)
            if learned:
                if progress is not None:
                    progress("predicting what its norms see", 0, None)
                prediction = _predict(network, captured, example, samples, seed, limits)
        modes, facts = _facts(network, norms, captured)
    if batches:
        measurement = measure(
            network,
            batches,
            forward=forward,
            loss=loss,
            estimator=estimator,
            seed=seed,
            progress=progress,
        )
    evidence = Evidence(
        train=captured.train if captured else None,
        eval=captured.eval if captured else None,
        norms=facts,
        modes=modes,
        loader=loader_facts(loader, tuple(map(batch_size, batches))) if loader is not None else None,
        measurement=measurement,
        prediction=prediction,
    )
    return build_report(
        target=target or type(network).__name__,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        evidence=evidence,
        capture_method=captured.method if captured else "hooks",
        findings=run_rules(evidence, select, ignore),
        limits=(*_limits(captured, measurement), *limits),
    )


def _example(network: nn.Module, inputs: Any, shape: Any, device: torch.device | str, samples: int) -> Any:
    if inputs is not None:
        return inputs
    if shape is None:
        return None
    shapes = [shape] if all(isinstance(size, int) for size in shape) else list(shape)
    parameter = next((p for p in network.parameters() if p.is_floating_point()), None)
    dtype = parameter.dtype if parameter is not None else torch.float32
    examples = tuple(torch.randn(samples, *sizes, device=device).to(dtype) for sizes in shapes)
    return examples[0] if len(examples) == 1 else examples


def _predict(
    network: nn.Module, captured: Capture, example: Any, samples: int, seed: int, limits: list[str]
) -> Prediction | None:
    """The prediction; a check does not fail for want of one."""
    try:
        return predict_captured(network, captured, example, samples, seed)
    except Exception as error:  # whatever a network's own operations raise on other inputs
        limits.append(f"What the norms see could not be predicted ({type(error).__name__}: {error}).")
        return None


def _facts(
    network: nn.Module, norms: Sequence[Any], captured: Capture | None
) -> tuple[ModeFacts, dict[str, NormFacts]]:
    noises = captured.train.noises if captured and captured.train else ()
    modes = mode_facts(network, norms, [noise.name for noise in noises])
    network.train(True)
    return modes, {norm.name: norm_facts(norm, live=norm.module.training) for norm in norms}


def _limits(captured: Capture | None, measurement: Measurement | None) -> tuple[str, ...]:
    limits: list[str] = []
    if captured is None:
        limits.append(
            "No inputs were given: the network was not captured, so noise could not be traced to norms."
        )
    else:
        limits.extend(captured.limits)
    if measurement is None:
        limits.append(
            "No data were given: nothing was measured. With a loader the shift at every norm and its share "
            "of the loss gap are measured, and findings only suspected here are confirmed or dropped."
        )
    else:
        limits.extend(measurement.limits)
    return tuple(limits)
