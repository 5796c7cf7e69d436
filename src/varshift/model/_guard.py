"""Leaves a model exactly as it was found: flags, buffers, hooks and random state, whatever happens inside."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class _Buffer:
    """One buffer and its value, written back only when something wrote to it."""

    def __init__(self, module: nn.Module, name: str, tensor: Tensor) -> None:
        self.module, self.name, self.tensor = module, name, tensor
        self.copy = tensor.detach().clone()
        self.version = _version(tensor)

    def restore(self) -> None:
        if self.module._buffers.get(self.name) is not self.tensor:
            self.module._buffers[self.name] = self.tensor
        # A batch norm's own kernel writes its statistics without counting it as a write.
        if _version(self.tensor) != self.version or not torch.equal(self.tensor, self.copy):
            write(self.tensor, self.copy)


def write(tensor: Tensor, value: Tensor) -> None:
    """Overwrites a buffer in place, wherever it was made."""
    # A tensor made in inference mode can be written to in inference mode only.
    context = torch.inference_mode() if tensor.is_inference() else torch.no_grad()
    with context:
        tensor.copy_(value)


def _version(tensor: Tensor) -> int | None:
    try:
        return tensor._version
    except RuntimeError:  # inference tensors do not count their writes
        return None


class Snapshot:
    """Training flags and buffers of a model at one moment.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        modules = list(model.modules())
        self._flags = [(module, module.training) for module in modules]
        self._buffers = [
            _Buffer(module, name, tensor)
            for module in modules
            for name, tensor in module._buffers.items()
            if tensor is not None and not tensor.is_meta
        ]

    def restore_buffers(self) -> None:
        """Gives every buffer its value back, bit for bit."""
        for buffer in self._buffers:
            buffer.restore()

    def wrote(self, tensor: Tensor) -> bool:
        """Whether something wrote other values into a buffer since the snapshot."""
        for buffer in self._buffers:
            if buffer.tensor is tensor:
                current = buffer.module._buffers.get(buffer.name)
                return current is not tensor or not torch.equal(tensor, buffer.copy)
        return True

    def restore(self) -> None:
        """Gives every flag and buffer its value back, bit for bit."""
        root, training = self._flags[0]
        try:
            if root.training != training:
                # Models that do more than flip a flag (merge and split adapters, say) undo it by themselves.
                root.train(training)
        finally:
            for module, training in self._flags:
                if module.training != training:
                    module.training = training
            self.restore_buffers()


@contextmanager
def preserved(model: nn.Module, *, seed: int | None = None) -> Iterator[Snapshot]:
    """Restores the model's flags and buffers and all global random states on the way out, also on errors.

    Args:
        model: The model.
        seed: Seeds all generators inside, so that what happens there can be repeated.
    """
    snapshot = Snapshot(model)
    states = _random_states()
    try:
        if seed is not None:
            _seed(seed)
        yield snapshot
    finally:
        snapshot.restore()
        _restore_random_states(states)


def _seed(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def _random_states() -> dict[str, Any]:
    states: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state(),
        "python": random.getstate(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state_all()
    if torch.backends.mps.is_available():
        states["mps"] = torch.mps.get_rng_state()
    return states


def _restore_random_states(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    np.random.set_state(states["numpy"])
    random.setstate(states["python"])
    if "cuda" in states:
        torch.cuda.set_rng_state_all(states["cuda"])
    if "mps" in states:
        torch.mps.set_rng_state(states["mps"])
