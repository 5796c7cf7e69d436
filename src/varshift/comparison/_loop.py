"""The built-in training: a short loop for whatever has a loss, which goes on from its last epoch."""

from __future__ import annotations

import contextlib
import math
import pickle
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from varshift._errors import DataError
from varshift.comparison._stream import Stream
from varshift.model import Forward, Reader, move, twin_of
from varshift.probe import Loss, loss_of
from varshift.report import write_atomically
from varshift.trials import TrialError

_WARM_UP, _FILE = 0.05, "epoch.pt"


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """How the built-in loop trains: AdamW, a short warm-up, then half a cosine down to zero.

    Attributes:
        epochs: Passes over the data.
        learning_rate: Largest learning rate.
        weight_decay: Weight decay of AdamW.
    """

    epochs: int = 5
    learning_rate: float = 1e-3
    weight_decay: float = 0.01


def train_loop(
    network: nn.Module,
    stream: Stream,
    settings: LoopSettings,
    *,
    device: torch.device | str,
    forward: Forward | None = None,
    loss: Loss | None = None,
    folder: Path | None = None,
    record: Callable[[Mapping[str, Any]], None] = lambda _: None,
) -> float:
    """Trains a network in place. An attempt that was interrupted goes on after its last whole epoch.

    Args:
        network: The network, on its device.
        stream: The data.
        settings: How it is trained.
        device: Where batches are put.
        forward: Function of model and batch that runs the model.
        loss: Function of outputs and targets.
        folder: Where the state after each epoch is kept; None to keep none.
        record: Told of every epoch.

    Returns:
        The seconds of its whole epochs that earlier attempts took.

    Raises:
        TrialError: If the loss is not finite.
        DataError: If there is nothing to train with.
    """
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if not parameters:
        raise DataError("the network has no parameter that needs a gradient: there is nothing to train.")
    optimizer = torch.optim.AdamW(
        parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, foreach=False
    )
    reader: Reader | None = None
    stream.epoch, before = _load(folder, network, optimizer)
    start = time.monotonic()
    for epoch in range(stream.epoch, settings.epochs):
        network.train()
        total = torch.zeros((), device=device)
        samples, steps = 0, stream.length
        for step, batch in enumerate(stream):
            batch = move(batch, device)
            if reader is None:
                reader = Reader(network, forward)
                reader.read_running(twin_of(network)[0], batch)
            call = reader.read(batch)
            progress = (epoch + (step / steps if steps else 0.0)) / settings.epochs
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * _schedule(progress)
            value = loss_of(call.outputs(network, forward), call, loss)
            if not isinstance(value, Tensor) or not value.requires_grad:
                raise DataError(
                    "the batches give no loss to train with: pass batches with targets, or loss= (a function "
                    "of outputs and targets that returns a tensor)."
                )
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            optimizer.step()
            total += value.detach().reshape(()) * call.size
            samples += call.size
        mean = float(total) / max(samples, 1)
        if not math.isfinite(mean):
            raise TrialError(
                f"the loss is {mean} in epoch {epoch + 1}: use a learning rate below "
                f"{settings.learning_rate:g}."
            )
        _save(folder, network, optimizer, epoch + 1, before + time.monotonic() - start)
        record({"event": "epoch", "epoch": epoch + 1, "loss": mean})
    return before


def _schedule(progress: float) -> float:
    if progress < _WARM_UP:
        return max(progress / _WARM_UP, 0.01)
    return 0.5 * (1 + math.cos(math.pi * (progress - _WARM_UP) / (1 - _WARM_UP)))


def _save(
    folder: Path | None, network: nn.Module, optimizer: torch.optim.Optimizer, epoch: int, seconds: float
) -> None:
    if folder is None:
        return
    state = {
        "epoch": epoch,
        "seconds": seconds,
        "tensors": dict(_tensors(network)),
        "values": _values(network),
        "optimizer": optimizer.state_dict(),
    }
    write_atomically(folder / _FILE, lambda file: torch.save(state, file))


def _load(folder: Path | None, network: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, float]:
    """The epochs that are done and their seconds, 0 where there is no state that can be read."""
    if folder is None or not (folder / _FILE).is_file():
        return 0, 0.0
    try:
        state = torch.load(folder / _FILE, weights_only=True, map_location="cpu")
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError):
        return 0, 0.0
    own = dict(_tensors(network))
    if own.keys() != state["tensors"].keys():
        return 0, 0.0
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(state["tensors"][name])
    optimizer.load_state_dict(state["optimizer"])
    modules = dict(network.named_modules())
    for name, values in state["values"].items():
        for key, value in values.items():
            with contextlib.suppress(AttributeError):
                setattr(modules[name], key, value)
    return int(state["epoch"]), float(state["seconds"])


def _tensors(network: nn.Module) -> Iterable[tuple[str, Tensor]]:
    """Parameters and buffers, those that a state dict leaves out included."""
    yield from network.named_parameters()
    yield from network.named_buffers()


def _values(network: nn.Module) -> dict[str, dict[str, Any]]:
    """Plain values that modules hold, such as counters of a schedule."""
    found = {}
    for name, module in network.named_modules():
        plain = {
            key: value
            for key, value in vars(module).items()
            if type(value) in (bool, int, float) and key != "training"
        }
        if plain:
            found[name] = plain
    return found
