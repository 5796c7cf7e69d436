"""One row of the survey: a network built, settled, checked, and what its report says as comparable data."""

from __future__ import annotations

import hashlib
import resource
import time
import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import varshift as vs
from _survey_plain import plain
from _surveyed_network import Built, Network

_BATCHES = 3


class Unbuildable(Exception):  # noqa: N818 - it carries the errors of all attempts, and is none of a check
    """No attempt gave a network that runs."""


def survey_row(network: Network, with_data: bool) -> dict[str, Any]:
    """Builds a network and checks it without data and, if asked for, with data.

    Returns:
        The row as JSON values. What a check raises is part of it, so that no network ends a survey.
    """
    row: dict[str, Any] = {"name": network.name, "torch": torch.__version__}
    try:
        built, batches, size = settled(network)
    except Unbuildable as error:
        return {**row, "unbuildable": str(error)}
    model, inputs = built.model, batches[0]
    row |= {
        "model": built.title,
        "settings": {key: str(value) for key, value in built.settings.items()},
        "inputs": [list(tensor.shape) for tensor in inputs],
        "size": size,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "forward_seconds": _forward_seconds(model, inputs),
    }
    example = _batch(inputs)
    row["free"] = _checked(model, inputs, lambda: vs.check(model, example_inputs=example))
    if with_data:
        loader, options = _loader(network, model, batches)
        row["data"] = _checked(model, inputs, lambda: vs.check(model, loader, **options))
    row["peak_megabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return row


def settled(network: Network, samples: int | None = None) -> tuple[Built, list[tuple[Tensor, ...]], int]:
    """The first attempt that builds and runs in both modes, with statistics of a few random batches.

    Args:
        network: The network.
        samples: Samples per batch; by default 8, above 128 pixels 4.

    Raises:
        Unbuildable: If none does.
    """
    errors = []
    for size, build in network.attempts():
        count = samples or (8 if size <= 128 else 4)
        torch.manual_seed(0)
        try:
            built = build()
            batches = [network.inputs(count, size) for _ in range(_BATCHES)]
            _settle(built.model, batches)
            with torch.no_grad():
                built.model.eval()(*batches[0])
        except Exception as error:  # whatever a size is refused with
            errors.append(f"{size}: {type(error).__name__}: {str(error)[:120]}")
            continue
        return built, batches, size
    raise Unbuildable("; ".join(errors) or "no attempt")


def _settle(model: nn.Module, batches: list[tuple[Tensor, ...]]) -> None:
    """Statistics that are averages over the batches, where a norm can average."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None
    model.train()
    with torch.no_grad():
        for inputs in batches:
            model(*inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def _forward_seconds(model: nn.Module, inputs: tuple[Tensor, ...]) -> float:
    """Process time of one bare forward pass per mode; the model is left in eval mode with its statistics."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    seconds = []
    with torch.no_grad(), torch.random.fork_rng():
        for _ in range(2):
            started = time.process_time()
            for training in (True, False):
                model.train(training)(*inputs)
            seconds.append(time.process_time() - started)
        for buffer, value in buffers:
            buffer.copy_(value)
    return min(seconds)


def _loader(
    network: Network, model: nn.Module, batches: list[tuple[Tensor, ...]]
) -> tuple[list[Any], dict[str, Any]]:
    """The batches with random targets that fit the network's outputs, and how `check` is called with them."""
    with torch.no_grad():
        output = model.eval()(*batches[0])
    first = first_tensor(output)
    options: dict[str, Any] = {}
    if not isinstance(output, Tensor) and getattr(output, "logits", None) is None:
        width = len(batches[0])
        options["forward"] = lambda module, batch: first_tensor(module(*batch[:width]))
    if not network.targets:
        return [_batch(inputs) for inputs in batches], {}
    if network.regression:
        return [(*inputs, torch.randn_like(first)) for inputs in batches], options
    classes = first.shape[1]
    shape = (first.shape[0], *first.shape[2:])
    return [(*inputs, torch.randint(classes, shape)) for inputs in batches], options


def _batch(inputs: tuple[Tensor, ...]) -> Any:
    """Inputs as a batch without targets."""
    return inputs if len(inputs) > 1 else next(iter(inputs))


def first_tensor(output: Any) -> Tensor:
    """The first tensor of what a network returns."""
    if isinstance(output, Tensor):
        return output
    entries = output.values() if hasattr(output, "values") else output
    return next(first_tensor(entry) for entry in entries if entry is not None)


def _checked(model: nn.Module, inputs: tuple[Tensor, ...], check: Callable[[], vs.Report]) -> dict[str, Any]:
    """What one check says, takes and changes."""
    torch.manual_seed(0)
    before = _fingerprint(model, inputs)
    started = time.process_time()
    result: dict[str, Any] = {}
    try:
        report = check()
    except Exception as error:  # a crash is what the survey looks for
        result["error"] = f"{type(error).__name__}: {error}"[:600]
        result["trace"] = "".join(traceback.format_exception(error))[-3000:]
    else:
        result |= plain(report)
    result["seconds"] = time.process_time() - started
    after = _fingerprint(model, inputs)
    result["changed"] = sorted(
        key for key in before.keys() | after.keys() if before.get(key) != after.get(key)
    )
    return result


def _fingerprint(model: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, str]:
    """Every tensor, flag and random state that a check has to leave alone, as short texts."""
    prints = {"random state": _digest(torch.get_rng_state())}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        prints[name] = _digest(tensor)
    for name, module in model.named_modules():
        prints[f"{name}.training"] = f"{module.training} {sorted(vars(module))}"
    for index, tensor in enumerate(inputs):
        prints[f"input {index}"] = _digest(tensor)
    return prints


def _digest(tensor: Tensor) -> str:
    values = tensor.detach().contiguous().reshape(-1).view(torch.uint8) if tensor.numel() else tensor
    return (
        f"{tensor.dtype} {tuple(tensor.shape)} {hashlib.blake2b(values.numpy(), digest_size=8).hexdigest()}"
    )
