"""Batch normalization preconditioning for neural network training.

S. Lange, K. Helfrich, Q. Ye, JMLR 23 (2022), arXiv 2108.01110. The paper's body could not be read. Which
experiments it has is known from its abstract and from memory: fully connected networks with batches of about
60, 6 and 1, and residual networks with group norm and preconditioning beside ones with batch norm. No figure
of it was recovered, and neither sizes of networks nor schedules nor learning rates: they are chosen here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn
from torch.optim import Optimizer

from varshift.optim import BatchNormPreconditioner
from varshift_lab.data import Augmentation
from varshift_lab.recipes._conditioning import conditioning
from varshift_lab.studies import Claim, Curve, Figure, Panel, Recipe, Row, Scale, Series, Table
from varshift_lab.training import (
    DataChoice,
    Network,
    Part,
    TrainingSettings,
    TrainingTrial,
    Treatment,
)

Method = Literal["plain", "batch", "bnp"]
METHODS: dict[Method, str] = {"plain": "no norm", "batch": "batch norm", "bnp": "BNP"}
DEEP = {"batch": "batch norm", "group": "group norm", "bnp": "group norm and BNP"}


@dataclass(frozen=True)
class Biases(Treatment):
    """Gives every convolution and linear layer a bias, which the preconditioner needs to centre inputs."""

    def prepare(self, model: nn.Module) -> None:
        """Adds biases of 0 where there are none."""
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is None:
                module.bias = nn.Parameter(module.weight.new_zeros(module.weight.shape[0]))


@dataclass(frozen=True)
class Preconditioning(Biases):
    """Batch norm preconditioning of all gradients, see `varshift.optim.BatchNormPreconditioner`.

    Attributes:
        decay: Of the statistics, per step.
        relative_eps: Floor of the variances, relative to the largest.
        eps: Floor of the variances.
    """

    decay: float = 0.99
    relative_eps: float = 1e-2
    eps: float = 1e-4

    def attach(self, model: nn.Module, optimizer: Optimizer, settings: TrainingSettings) -> Sequence[Part]:
        """Hooks the preconditioner into the optimiser."""
        preconditioner = BatchNormPreconditioner(
            model, decay=self.decay, relative_eps=self.relative_eps, eps=self.eps
        )
        preconditioner.attach(optimizer)
        return [preconditioner]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run at one scale.

    Attributes:
        data: The data of all networks.
        seeds: One trial each.
        hidden: Layers and units of the fully connected networks.
        dense: Their training, the batch left open.
        epochs: Of the fully connected networks, by the samples of a batch.
        rates: Learning rates that are tried at the middle batch, by method.
        best: The learning rate of each method and batch.
        deep: The residual network.
        deep_settings: Its training.
        note: How the scale was chosen.
    """

    data: DataChoice
    seeds: tuple[int, ...]
    hidden: tuple[int, int]
    dense: TrainingSettings
    epochs: dict[int, int]
    rates: dict[Method, tuple[float, ...]]
    best: dict[tuple[Method, int], float]
    deep: Network
    deep_settings: TrainingSettings
    note: str

    @property
    def batches(self) -> tuple[int, ...]:
        """Samples of a batch, from large to small."""
        return tuple(self.epochs)

    @property
    def middle(self) -> int:
        """The batch that learning rates are tried at."""
        return self.batches[1]


# Learning rates of fully connected networks that made the fewest errors at laptop scale with another seed.
# The grid went in steps of about 3 from 0.003 to 0.3 (0.001 to 0.03 for one sample), and to ten times that
# for BNP, which divides its steps by the fan-in over the batch.
_BEST: dict[tuple[Method, int], float] = {
    ("plain", 60): 0.1,
    ("batch", 60): 0.03,
    ("bnp", 60): 0.1,
    ("plain", 6): 0.03,
    ("batch", 6): 0.01,
    ("bnp", 6): 0.3,
    ("plain", 1): 0.01,
    ("bnp", 1): 0.3,
}
# Rates of the figure, around the best ones. Without a norm, 0.3 diverges.
_RATES: dict[Method, tuple[float, ...]] = {
    "plain": (0.003, 0.01, 0.03, 0.1),
    "batch": (0.003, 0.01, 0.03, 0.1),
    "bnp": (0.03, 0.1, 0.3, 1.0),
}


def plan(scale: Scale) -> Plan:
    """What is run at this scale."""
    dense = TrainingSettings(
        epochs=1, batch_size=60, learning_rate=0.1, schedule="constant", momentum=0.0, weight_decay=0.0
    )
    residual = TrainingSettings(
        epochs=8,
        batch_size=32,
        learning_rate=0.1,
        schedule="cosine",
        warmup=0.1,
        weight_decay=5e-4,
        augmentation=Augmentation(pad=2, flip=0.5),
    )
    if scale == "smoke":
        return Plan(
            DataChoice("digits", train=300),
            seeds=(0, 1),
            hidden=(3, 32),
            dense=dense,
            epochs={60: 6, 6: 2, 1: 1},
            rates={method: rates[1:3] for method, rates in _RATES.items()},
            best={key: 3 * rate for key, rate in _BEST.items()},  # there is little time
            deep=Network.of("preresnet", depth=8, width=4),
            deep_settings=replace(residual, epochs=3, augmentation=Augmentation()),
            note="Small networks, briefly trained on 300 digits: shows that all of it runs, not what the "
            "paper claims.",
        )
    if scale == "laptop":
        return Plan(
            DataChoice("cifar10", train=3000, test=4000, size=16),
            seeds=(0, 1, 2),
            hidden=(4, 100),
            dense=dense,
            epochs={60: 12, 6: 4, 1: 1},
            rates=_RATES,
            best=_BEST,
            deep=Network.of("preresnet", depth=8, width=8),
            deep_settings=residual,
            note="3,000 images of CIFAR-10 at 16 x 16 pixels; fully connected networks of 3 hidden layers of "
            "100 units, constant learning rates; PreResNet-8 of half the width.",
        )
    return Plan(
        DataChoice("cifar10"),
        seeds=(0, 1, 2, 3, 4),
        hidden=(4, 100),
        dense=dense,
        epochs={60: 50, 6: 20, 1: 5},
        rates=_RATES,
        best=_BEST,
        deep=Network.of("preresnet", depth=110, block="basic"),
        deep_settings=replace(
            residual,
            epochs=200,
            batch_size=128,
            schedule="steps",
            milestones=(0.5, 0.75),
            warmup=0.005,
            weight_decay=1e-4,
            augmentation=Augmentation(pad=4, flip=0.5),
        ),
        note="Networks and schedules are chosen here: the paper's are not known.",
    )


def dense_trials(
    scale: Scale, method: Method, batch: int, rate: float | None = None
) -> tuple[TrainingTrial, ...]:
    """Fully connected networks with one method and batch, at its best learning rate or at another one."""
    made = plan(scale)
    depth, width = made.hidden
    network = Network.of(
        "linear_bn",
        depth=depth,
        width=width,
        activation="relu",
        bias=True,
        norm="batch" if method == "batch" else "none",
    )
    settings = replace(
        made.dense,
        epochs=made.epochs[batch],
        batch_size=batch,
        learning_rate=made.best[method, batch] if rate is None else rate,
    )
    treatment = Preconditioning() if method == "bnp" else None
    measures = ("errors", conditioning.__name__)
    return tuple(
        TrainingTrial(seed, network, made.data, settings, measures, treatment) for seed in made.seeds
    )


def deep_trials(scale: Scale, kind: str) -> tuple[TrainingTrial, ...]:
    """Residual networks with batch norm, group norm, or group norm and preconditioning."""
    made = plan(scale)
    arguments = {**dict(made.deep.arguments), "norm": "batch" if kind == "batch" else "group"}
    network = Network.of(made.deep.family, **arguments)
    treatment = Preconditioning() if kind == "bnp" else Biases()
    return tuple(
        TrainingTrial(seed, network, made.data, made.deep_settings, treatment=treatment)
        for seed in made.seeds
    )


def _pairs(scale: Scale) -> list[tuple[Method, int]]:
    return [pair for pair in _BEST if pair[1] in plan(scale).batches]


def dense(scale: Scale) -> Table:
    """Test errors of fully connected networks by method and batch."""
    return _dense(scale, "dense", "Test error of fully connected networks", "test_error", "test error, %")


def speed(scale: Scale) -> Table:
    """How fast they train: the loss, averaged over all epochs."""
    return _dense(
        scale, "speed", "Training loss, averaged over all epochs", "train_loss_mean", "cross-entropy"
    )


def _dense(scale: Scale, name: str, title: str, quantity: str, unit: str) -> Table:
    made = plan(scale)
    rows = [
        Row(
            (METHODS[method], str(batch), f"{made.best[method, batch]:g}"),
            Series(dense_trials(scale, method, batch), quantity),
        )
        for method, batch in _pairs(scale)
    ]
    return Table(
        name,
        title,
        ("method", "samples per batch", "learning rate"),
        unit,
        tuple(rows),
        "No figure of the paper was recovered. Learning rates were chosen with another seed. Batch norm "
        f"cannot train on one sample. {made.note}",
    )


def deep(scale: Scale) -> Table:
    """Test errors of residual networks."""
    rows = [Row((label,), Series(deep_trials(scale, kind), "test_error")) for kind, label in DEEP.items()]
    return Table(
        "residual",
        "Test error of residual networks",
        ("method",),
        "test error, %",
        tuple(rows),
        f"No figure of the paper was recovered. All convolutions have biases. {plan(scale).note}",
    )


def conditions(scale: Scale) -> Table:
    """Condition numbers of what weight and bias see, as it is and as preconditioning makes it."""
    rows = []
    for method in METHODS:
        run = dense_trials(scale, method, plan(scale).batches[0])
        for label, quantity in (
            ("as it is", "condition_bias"),
            ("preconditioned", "condition_preconditioned"),
        ):
            rows.append(Row((METHODS[method], label), Series(run, quantity)))
    return Table(
        "conditioning",
        f"Condition number of the inputs of the layers, batches of {plan(scale).batches[0]}",
        ("method", "inputs"),
        "geometric mean over layers",
        tuple(rows),
        "Of the matrix [1, h] over 500 training images, after training. The Hessian has the square of it. "
        + plan(scale).note,
    )


def rates(scale: Scale) -> Figure:
    """Test error over the learning rate, and training losses at the best ones."""
    made = plan(scale)
    curves = tuple(
        Curve(
            label,
            tuple(
                Series(dense_trials(scale, method, made.middle, rate), "test_error")
                for rate in made.rates[method]
            ),
            tuple(f"{rate:g}" for rate in made.rates[method]),
        )
        for method, label in METHODS.items()
    )
    panels = [Panel(f"batches of {made.middle}", curves, "learning rate", "test error, %")]
    for batch in made.batches[:2]:
        epochs = tuple(float(epoch) for epoch in range(1, made.epochs[batch] + 1))
        losses = tuple(
            Curve(
                METHODS[method], (Series(dense_trials(scale, method, batch), "train_loss_history"),), epochs
            )
            for method, size in _pairs(scale)
            if size == batch
        )
        panels.append(Panel(f"batches of {batch}, best rates", losses, "epoch", "training loss"))
    return Figure("rates", "Fully connected networks", tuple(panels), columns=len(panels), note=made.note)


def claims(scale: Scale) -> tuple[Claim, ...]:
    """What the abstract says of these figures, and what is remembered of the paper."""
    made = plan(scale)
    large, small = made.batches[:2]

    def of(method: Method, batch: int, quantity: str = "test_error") -> Series:
        return Series(dense_trials(scale, method, batch), quantity)

    remembered = "from memory of the paper"
    found = []
    for batch in made.batches:
        found += [
            Claim(
                f"Batches of {batch}: BNP trains faster than no norm.",
                of("bnp", batch, "train_loss_mean"),
                of("plain", batch, "train_loss_mean"),
                source="abstract: faster convergence",
            ),
            Claim(
                f"Batches of {batch}: BNP makes fewer errors than no norm.",
                of("bnp", batch),
                of("plain", batch),
                source=remembered,
            ),
        ]
    found += [
        Claim(
            f"Batches of {large}: BNP is within one point of batch norm.",
            of("bnp", large),
            of("batch", large),
            margin=1.0,
            source=remembered,
        ),
        Claim(
            f"Batches of {small}: BNP makes fewer errors than batch norm.",
            of("bnp", small),
            of("batch", small),
            source="abstract: small batches; and from memory of the paper",
        ),
        Claim(
            "Preconditioning conditions the inputs of networks without norms better.",
            of("plain", large, "condition_preconditioned"),
            of("plain", large, "condition_bias"),
            source="derived: what the preconditioning is made for",
        ),
        Claim(
            "Residual networks: group norm and BNP makes fewer errors than group norm.",
            Series(deep_trials(scale, "bnp"), "test_error"),
            Series(deep_trials(scale, "group"), "test_error"),
            source=remembered,
        ),
        Claim(
            "Residual networks: group norm and BNP is within one point of batch norm.",
            Series(deep_trials(scale, "bnp"), "test_error"),
            Series(deep_trials(scale, "batch"), "test_error"),
            margin=1.0,
            source=remembered,
        ),
    ]
    return tuple(found)


RECIPE = Recipe(
    "batch-norm-preconditioning",
    "Batch Normalization Preconditioning for Neural Network Training",
    "S. Lange, K. Helfrich, Q. Ye, JMLR 23 (2022), arXiv 2108.01110",
    tables={"dense": dense, "speed": speed, "residual": deep, "conditioning": conditions},
    figures={"rates": rates},
    claims=claims,
)
