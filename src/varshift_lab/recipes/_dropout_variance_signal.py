"""How a signal and its gradient fare in a deep network at its start, before any training."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from varshift.nn.init import dropout_corrected_
from varshift.trials import Measurements, Trial, Workbench

Start = Literal["corrected", "paper", "autograd", "he", "xavier"]
Activation = Literal["relu", "gelu", "elu", "tanh"]

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "elu": F.elu,
    "tanh": torch.tanh,
}


@dataclass(frozen=True)
class SignalTrial(Trial):
    """Sends Gaussian samples through linear layers with dropout behind every activation, and back.

    Attributes:
        start: How the weights start: ``"corrected"`` for dropout, the forward signal alone (what the paper
            recommends for deep networks); ``"paper"``, both directions as printed; ``"autograd"``, both as
            inverted dropout passes gradients on; ``"he"`` or ``"xavier"``.
        keep: KEEP probability of the dropout.
        activation: What stands behind each layer.
        depth: Layers.
        width: Units of each.
        samples: Inputs, standard normal.

    Raises:
        ValueError: If a start or an activation is unknown.
    """

    start: Start
    keep: float
    activation: Activation = "relu"
    depth: int = 20
    width: int = 500
    samples: int = 1000

    def __post_init__(self) -> None:
        for name, known in (("start", Start), ("activation", Activation)):
            if getattr(self, name) not in get_args(known):
                raise ValueError(
                    f"{name}={getattr(self, name)!r} must be one of {', '.join(get_args(known))}."
                )

    @property
    def title(self) -> str:
        """Start, rate and seed."""
        return f"{self.start} start, {self.activation}, keep {self.keep:g}, seed {self.seed}"

    def run(self, workbench: Workbench) -> Measurements:
        """Second moments of what every activation reads, and of the gradient there.

        ``signal`` and ``gradient`` are lists over the layers, ``_gain`` is the geometric mean of what one
        layer multiplies them with on their way, and ``_drift`` how many powers of ten they moved in all. The
        gradient is that of standard normal noise at the last layer.
        """
        generator = torch.Generator().manual_seed(self.seed)
        x = torch.randn(self.samples, self.width, generator=generator).requires_grad_()
        seen: list[Tensor] = []
        for layer in range(self.depth):
            weight = self._weight(layer, generator)
            z = x @ weight.T
            seen.append(z)
            mask = torch.empty_like(z).bernoulli_(self.keep, generator=generator) / self.keep
            x = _ACTIVATIONS[self.activation](z) * mask
        noise = torch.randn(self.samples, self.width, generator=generator)
        gradients = torch.autograd.grad(seen[-1], seen, noise)
        moments = {
            "signal": [float(z.detach().double().square().mean()) for z in seen],
            "gradient": [float(one.double().square().mean()) for one in gradients],
        }
        found: dict[str, float | list[float]] = dict(moments)
        for name, values in moments.items():
            ordered = values if name == "signal" else values[::-1]
            ratio = ordered[-1] / ordered[0]
            found[f"{name}_gain"] = ratio ** (1 / (self.depth - 1))
            found[f"{name}_drift"] = abs(math.log10(ratio))
        return found

    def _weight(self, layer: int, generator: torch.Generator) -> Tensor:
        weight = torch.empty(self.width, self.width)
        if self.start == "he":
            return nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=generator)
        if self.start == "xavier":
            return nn.init.xavier_uniform_(weight, generator=generator)
        mode = {"corrected": "forward"}.get(self.start, self.start)
        dropout_corrected_(
            weight,
            self.activation if layer else "identity",
            self.activation,
            keep_in=self.keep if layer else 1.0,
            keep_out=self.keep,
            mode=mode,  # type: ignore[arg-type]
            generator=generator,
        )
        return weight
