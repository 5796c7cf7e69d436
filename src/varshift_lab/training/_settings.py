"""How a network is trained, as plain data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import nn
from torch.optim import Optimizer

from varshift._arguments import between, count, non_negative, positive
from varshift_lab.data import Augmentation

Schedule = Literal["steps", "cosine", "constant", "cycle"]
OptimizerName = Literal["sgd", "adam", "adamw"]
TrainingOrder = Literal["reshuffle", "single"]

_NONE = Augmentation()


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """How a network is trained.

    Attributes:
        epochs: Passes over the training set.
        batch_size: Samples per step, of all processes together.
        learning_rate: Largest learning rate.
        schedule: ``"steps"`` multiplies the rate by `decay` at each of the `milestones`; ``"cosine"`` and
            ``"cycle"`` lower it to 0 along half a cosine or a straight line; ``"constant"`` leaves it.
        milestones: Shares of training, in (0, 1), for ``"steps"``.
        decay: What the rate is multiplied by at each of them.
        warmup: Share of training, from the start, over which the rate rises in a straight line.
        momentum: Momentum of SGD; the first of Adam's betas.
        nesterov: Nesterov's form of momentum, for SGD.
        weight_decay: Weight decay: added to the gradients for ``"sgd"`` and ``"adam"``, apart for
            ``"adamw"``.
        optimizer: ``"sgd"``, ``"adam"`` or ``"adamw"``.
        decay_norms: Whether the decay holds for biases and the parameters of norms (all of one axis), too.
        order: ``"reshuffle"`` draws a new order in each epoch, ``"single"`` one for all.
        augmentation: What is done to the training images.
        drop_last: Leave out a last batch that is not full. True by default: a batch norm cannot do with a
            batch of one, and few samples give it poor statistics.
        label_smoothing: Share of each target that is spread over all classes.
        clip_norm: Largest norm of all gradients together; None for any.
        probe_every: Epochs between probes of varshift (the last epoch always has one); 0 for none.
        probe_samples: Training images that a probe runs on.

    Raises:
        ValueError: If a number is out of range or a name unknown.

    Example:
        >>> from varshift_lab.training import TrainingSettings
        >>> settings = TrainingSettings(epochs=4, batch_size=64, learning_rate=0.1, warmup=0.25)
        >>> [round(settings.rate(step, 8), 4) for step in range(8)]
        [0.05, 0.1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
    """

    epochs: int
    batch_size: int
    learning_rate: float
    schedule: Schedule = "steps"
    milestones: tuple[float, ...] = (0.5, 0.75)
    decay: float = 0.1
    warmup: float = 0.0
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 1e-4
    optimizer: OptimizerName = "sgd"
    decay_norms: bool = True
    order: TrainingOrder = "reshuffle"
    augmentation: Augmentation = _NONE
    drop_last: bool = True
    label_smoothing: float = 0.0
    clip_norm: float | None = None
    probe_every: int = 0
    probe_samples: int = 1024

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "probe_samples"):
            count(name, getattr(self, name), 1)
        count("probe_every", self.probe_every, 0)
        positive("learning_rate", self.learning_rate)
        non_negative("weight_decay", self.weight_decay)
        for name in ("decay", "warmup", "momentum", "label_smoothing"):
            between(name, getattr(self, name), 0, 1)
        for place, share in enumerate(self.milestones):
            between(f"milestones[{place}]", share, 0, 1)
        if self.clip_norm is not None:
            positive("clip_norm", self.clip_norm)
        for name, known in (("schedule", Schedule), ("optimizer", OptimizerName), ("order", TrainingOrder)):
            if getattr(self, name) not in get_args(known):
                raise ValueError(
                    f"{name}={getattr(self, name)!r} must be one of {', '.join(get_args(known))}."
                )

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step, counted from 0, of so many."""
        warm = round(self.warmup * steps)
        if step < warm:
            return self.learning_rate * (step + 1) / warm
        past = (step - warm) / max(steps - warm, 1)
        factor = {
            # a share of 0.15 of 20 steps is the third one, whatever the rounding of their product
            "steps": self.decay ** sum(step >= share * steps - 1e-6 for share in self.milestones),
            "cosine": (1 + math.cos(math.pi * past)) / 2,
            "cycle": 1 - past,
            "constant": 1.0,
        }[self.schedule]
        return self.learning_rate * factor

    def make_optimizer(self, model: nn.Module) -> Optimizer:
        """The optimiser of a network's parameters that ask for gradients."""
        parameters = [one for one in model.parameters() if one.requires_grad]
        decayed = [one for one in parameters if self.decay_norms or one.dim() > 1]
        others = [one for one in parameters if not (self.decay_norms or one.dim() > 1)]
        groups = [
            {"params": group, "weight_decay": decay}
            for group, decay in ((decayed, self.weight_decay), (others, 0.0))
            if group
        ]
        # One kernel for all parameters where there are many launches to save.
        fused = bool(parameters) and all(one.device.type == "cuda" for one in parameters)
        common = {"lr": self.learning_rate, "fused": fused or None}
        if self.optimizer == "sgd":
            nesterov = self.nesterov and self.momentum > 0
            return torch.optim.SGD(groups, momentum=self.momentum, nesterov=nesterov, **common)
        kind = torch.optim.Adam if self.optimizer == "adam" else torch.optim.AdamW
        return kind(groups, betas=(self.momentum, 0.999), **common)
