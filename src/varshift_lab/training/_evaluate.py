"""A network's loss and errors on a set of images."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from varshift.model import preserved


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A network on a data set.

    Attributes:
        losses: ``(N,)``, cross-entropy of each sample, in the loader's order.
        accuracy: Share of samples classified correctly.
    """

    losses: Tensor
    accuracy: float

    @property
    def loss(self) -> float:
        """Mean cross-entropy over samples."""
        return float(self.losses.double().mean())

    @property
    def error(self) -> float:
        """Share of samples classified wrongly, in %."""
        return 100 * (1 - self.accuracy)


def evaluate(
    model: nn.Module, loader: Iterable[Any], *, train_mode: bool = False, seed: int = 0
) -> Evaluation:
    """Runs a classifier over a data set and leaves it, its statistics included, as it was.

    Args:
        model: The network.
        loader: Batches of ``(inputs, class indices)``.
        train_mode: Run it in ``train()``: noise on, norms on the statistics of each batch.
        seed: Seed of the noise.

    Raises:
        ValueError: If the loader yields nothing.
    """
    device = next((one.device for one in model.parameters()), torch.device("cpu"))
    losses, hits = [], []
    with preserved(model, seed=seed), torch.no_grad():
        model.train(train_mode)
        for inputs, targets in loader:
            outputs, targets = model(inputs.to(device)).float(), targets.to(device)
            losses.append(F.cross_entropy(outputs, targets, reduction="none"))
            hits.append(outputs.argmax(1) == targets)
    if not losses:
        raise ValueError("loader yields nothing: at least one batch is needed.")
    correct = torch.cat(hits)
    return Evaluation(torch.cat(losses).cpu(), int(correct.sum()) / len(correct))
