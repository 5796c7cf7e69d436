"""Noise that acts in one part of the training only: early and late dropout."""

from __future__ import annotations

from typing import Any

from torch import nn

from varshift.model import Switch


class NoiseWindow:
    """Switches the noise of a network off while the training is outside of a window.

    It acts on every forward pass of the network in training mode, so that a training loop may call
    ``model.train()`` as often as it likes. Norms go on learning from their batches. Reference for the idea:
    Liu et al., "Dropout Reduces Underfitting", ICML 2023.

    Args:
        network: The network.
        window: Where noise acts, as shares of the training: ``(0, 0.5)`` is its first half.
    """

    def __init__(self, network: nn.Module, window: tuple[float, float]) -> None:
        self._network, self._window = network, window
        self._quiet = False
        self._switches: list[Switch] = []
        self._handles = [
            network.register_forward_pre_hook(self._enter, with_kwargs=True),
            network.register_forward_hook(self._leave, always_call=True),
        ]

    def at(self, progress: float) -> None:
        """Says how much of the training is done, from 0 to 1."""
        start, end = self._window
        self._quiet = not start <= progress < end

    def close(self) -> None:
        """Leaves the network as it was."""
        for handle in self._handles:
            handle.remove()

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self._quiet and module.training:
            self._switches.append(Switch(module, module, noise=False, batch=True))

    def _leave(self, *_: Any) -> None:
        while self._switches:
            self._switches.pop().undo()
