"""A plain training loop: that of the demo, of the core's own tests and of the benchmarks of its predictions.

It needs torch alone and starts at once. Figures in the documentation are of networks that it trained, and a
loop with other random numbers would move them; experiments are trained by `varshift_lab.training`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from varshift import VarshiftError

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """How a network is trained: SGD with Nesterov momentum and the usual step schedule of residual networks.

    The learning rate rises over the first tenth of the steps and is divided by 10 after 50, 70 and 85 % of
    them. So the weights hardly move at the end and the running statistics can catch up with them.

    Attributes:
        epochs: Passes over the data, at least 1.
        learning_rate: Learning rate before it is divided.
        momentum: Momentum of SGD.
        weight_decay: Decay of every parameter.
        seed: Seed of the dropout masks.
    """

    epochs: int
    learning_rate: float
    momentum: float = 0.9
    weight_decay: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"epochs={self.epochs!r} must be at least 1.")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate={self.learning_rate!r} must be above 0.")


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """One epoch of training, as the optimiser saw it (noise on, batch statistics, weights on the move).

    Attributes:
        loss: Mean cross-entropy over samples.
        accuracy: Share of samples classified correctly.
    """

    loss: float
    accuracy: float


def step_schedule(progress: float) -> float:
    """Factor of the learning rate when this share of training, 0 to 1, is done."""
    if progress < 0.1:
        return progress / 0.1
    return 0.1 ** sum(progress >= milestone for milestone in (0.5, 0.7, 0.85))


def train(
    model: nn.Module,
    loader: Iterable[Any],
    settings: TrainingSettings,
    progress: Progress | None = None,
) -> list[EpochRecord]:
    """Trains a classifier in place and leaves it in training mode.

    The global random state is as before afterwards. The same model, data and seed give the same weights on
    the same machine with the same number of threads.

    Args:
        model: The network, class scores out.
        loader: Batches of ``(inputs, class indices)``, with a length.
        settings: See `TrainingSettings`.
        progress: Called with steps done and steps in all.

    Returns:
        One record per epoch.

    Raises:
        VarshiftError: If the loss is not finite at the end of an epoch.
        TypeError: If the loader has no length, which the schedule needs.
    """
    if not isinstance(loader, Sized):
        raise TypeError(f"loader is a {type(loader).__name__} without a length: the schedule needs one.")
    total = settings.epochs * len(loader)
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=settings.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=settings.momentum > 0,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step_schedule(step / max(total, 1)))
    device = next(model.parameters()).device
    records, done = [], 0
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(settings.seed)
        model.train()
        for epoch in range(settings.epochs):
            loss_sum = torch.zeros((), device=device)
            correct = torch.zeros((), device=device)
            samples = 0
            for inputs, targets in loader:
                inputs, targets = inputs.to(device), targets.to(device)
                outputs = model(inputs)
                loss = F.cross_entropy(outputs, targets)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
                loss_sum += loss.detach() * len(targets)
                correct += (outputs.detach().argmax(1) == targets).sum()
                samples += len(targets)
                done += 1
                if progress is not None:
                    progress(done, total)
            record = EpochRecord(float(loss_sum) / samples, float(correct) / samples)
            if not math.isfinite(record.loss):
                raise VarshiftError(
                    f"training diverged in epoch {epoch + 1}: the loss is {record.loss}. Use a learning rate "
                    f"below {settings.learning_rate:g}."
                )
            records.append(record)
    return records
