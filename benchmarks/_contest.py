"""What a contest of two parts is and how it is measured: time of both passes, bytes kept in between."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Contest:
    """One of our parts against a peer that does the same or the nearest job.

    Attributes:
        name: What is measured.
        peer_name: What it is measured against.
        ours: Makes our layer.
        peer: Makes the peer.
        shape: Shape of the input.
        cpu: The ratio that we want to stay below in eager mode on a CPU.
        gpu: The ratio that we want to stay below on a GPU; eager, or compiled where `gpu_compiled` says so.
    """

    name: str
    peer_name: str
    ours: Callable[[], nn.Module]
    peer: Callable[[], nn.Module]
    shape: tuple[int, ...]
    cpu: float | None = None
    gpu: float | None = None
    gpu_compiled: bool = False


@dataclass(frozen=True)
class StepContest:
    """A whole step with one of our parts against the same step without it.

    Attributes:
        name: What is measured.
        peer_name: What it is measured against.
        ours: Makes, for a device, a function that runs a step with our part.
        peer: Makes, for a device, a function that runs the step without it.
        target: The ratio that we want to stay below.
    """

    name: str
    peer_name: str
    ours: Callable[[str], Callable[[], object]]
    peer: Callable[[str], Callable[[], object]]
    target: float


def pass_of(layer: nn.Module, shape: tuple[int, ...], device: str) -> Callable[[], None]:
    """A forward and backward pass of a layer in training, gradients of input and parameters included."""
    layer = layer.to(device).train()
    x = torch.randn(shape, device=device, requires_grad=True)
    parameters = [parameter for parameter in layer.parameters() if parameter.requires_grad]
    with torch.no_grad():
        out = layer(x)
        upstream = torch.randn_like(out[0] if isinstance(out, tuple) else out)

    def run() -> None:
        out = layer(x)
        out = out[0] if isinstance(out, tuple) else out
        torch.autograd.grad(out, [x, *parameters], upstream, allow_unused=True)
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def saved_bytes(layer: nn.Module, shape: tuple[int, ...], device: str) -> int:
    """Bytes that a training pass keeps for the backward pass, each storage once, parameters left out."""
    layer = layer.to(device).train()
    x = torch.randn(shape, device=device, requires_grad=True)
    own = {parameter.untyped_storage().data_ptr() for parameter in layer.parameters()}
    kept: dict[int, int] = {}
    alive: list[torch.Tensor] = []  # so that no address is used twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = layer(x)
    del out
    return sum(kept.values())
