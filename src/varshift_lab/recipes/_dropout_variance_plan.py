"""Which networks the recipe on dropout variance starts and trains at which scale, and how."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

from varshift_lab.data import Augmentation
from varshift_lab.recipes._dropout_variance_parts import WeightStart
from varshift_lab.recipes._dropout_variance_signal import SignalTrial, Start
from varshift_lab.studies import Scale
from varshift_lab.training import DataChoice, Network, TrainingSettings, TrainingTrial


@dataclass(frozen=True, slots=True)
class Optimiser:
    """One way to train the VGG-like network.

    Attributes:
        name: As in the paper's table.
        settings: The training, but for the learning rate.
        rates: The learning rates that are tried.
        paper: The paper's test errors with corrected weights and with He's.
    """

    name: str
    settings: TrainingSettings
    rates: tuple[float, ...]
    paper: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Reestimation:
    """One network whose norms are estimated anew.

    Attributes:
        label: Data and network.
        network: With dropout.
        data: The data.
        settings: The training; its first half has one learning rate.
        paper: The paper's test errors: halfway, halfway with new variances, final, final with new variances.
    """

    label: tuple[str, str, str]
    network: Network
    data: DataChoice
    settings: TrainingSettings
    paper: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run at one scale.

    Attributes:
        depth: Layers of the networks that signals are sent through.
        width: Their units.
        vgg: The VGG-like network.
        vgg_data: Its data, with their name.
        optimisers: How it is trained.
        reestimations: The networks with norms.
        seeds: One trial each.
        note: How the scale was chosen.
    """

    depth: int
    width: int
    vgg: Network
    vgg_data: tuple[str, DataChoice]
    optimisers: tuple[Optimiser, ...]
    reestimations: tuple[Reestimation, ...]
    seeds: tuple[int, ...]
    note: str


def plan(scale: Scale) -> Plan:
    """What is run at this scale."""
    return {"smoke": _smoke, "laptop": _laptop, "paper": _paper}[scale]()


def _optimisers(settings: TrainingSettings, *, rates: int) -> tuple[Optimiser, ...]:
    adam = replace(settings, optimizer="adam")
    return (
        Optimiser("Adam", adam, (1e-3, 1e-4, 1e-5)[:rates], (9.51, 10.54)),
        Optimiser("Nesterov", settings, (1e-2, 1e-3, 1e-4)[:rates], (7.61, 36.59)),
    )


def _paper() -> Plan:
    vgg = TrainingSettings(
        epochs=150,
        batch_size=128,
        learning_rate=1e-2,
        milestones=(100 / 150, 125 / 150),
        weight_decay=5e-4,
        augmentation=Augmentation(pad=4, flip=0.5),
    )
    # The authors decay by the squared norm, without the factor 1/2 of torch's weight decay.
    dense = TrainingSettings(epochs=300, batch_size=64, learning_rate=0.1, weight_decay=2e-4)
    cells = (
        ("cifar10", "CIFAR-10", 0.2, (6.37, 6.07, 5.62, 5.38)),
        ("cifar100", "CIFAR-100", 0.3, (24.56, 22.48, 23.91, 22.48)),
        ("cifar100", "CIFAR-100", 0.2, (23.89, 22.86, 22.65, 22.17)),
    )
    return Plan(
        20,
        500,
        Network.of("vgg", depth=15),
        ("CIFAR-10", DataChoice("cifar10")),
        _optimisers(vgg, rates=3),
        tuple(
            Reestimation(
                (label, "DenseNet-100, k=12", f"{rate:g}"),
                Network.of("densenet", depth=100, growth=12, dropout=rate, placement="G"),
                DataChoice(name),
                dense,
                paper,
            )
            for name, label, rate, paper in cells
        ),
        (0, 1, 2),
        "The paper's networks, data and schedules; it has one run of each. For the DenseNets it resets the "
        "momentum every 5 epochs, which the released code does not do and is left out.",
    )


def _laptop() -> Plan:
    """Six minutes of one core.

    With the paper's drop rates in all its layers the VGG-like network learns slowly: a quarter of a minute
    shows how training starts and not where it ends (a width of 8 and half a minute left 88 % of errors).
    """
    dense = TrainingSettings(epochs=8, batch_size=64, learning_rate=0.1, weight_decay=2e-4)
    vgg = TrainingSettings(
        epochs=5, batch_size=64, learning_rate=1e-2, milestones=(0.67, 0.83), weight_decay=5e-4
    )
    return Plan(
        20,
        500,
        Network.of("vgg", depth=15, width=8),
        ("CIFAR-10", DataChoice("cifar10", train=2500, test=2000)),
        _optimisers(vgg, rates=1),
        (
            Reestimation(
                ("CIFAR-10", "DenseNet-22, k=6", "0.3"),
                Network.of("densenet", depth=22, growth=6, dropout=0.3, placement="G"),
                DataChoice("cifar10", train=4000, test=4000, size=8),
                dense,
            ),
        ),
        (0, 1, 2),
        "VGG of width 8, 2,500 images, 5 epochs: how training starts, not where it ends; DenseNet-22, k=6, "
        "4,000 images of 8x8 pixels, 8 epochs.",
    )


def _smoke() -> Plan:
    vgg = TrainingSettings(epochs=2, batch_size=64, learning_rate=1e-2, weight_decay=5e-4)
    dense = TrainingSettings(epochs=4, batch_size=64, learning_rate=0.1, weight_decay=2e-4)
    return Plan(
        10,
        100,
        Network.of("vgg", depth=15, width=4),
        ("digits", DataChoice("digits", train=640, size=32)),
        _optimisers(vgg, rates=1),
        (
            Reestimation(
                ("digits", "DenseNet-13, k=4", "0.3"),
                Network.of("densenet", depth=13, growth=4, dropout=0.3, placement="G"),
                DataChoice("digits"),
                dense,
            ),
        ),
        (0, 1),
        "Small networks, briefly trained on digits: that all of it runs, not what the paper claims.",
    )


def signals(scale: Scale, start: Start, keep: float) -> tuple[SignalTrial, ...]:
    """Signals through networks at their start, one per seed."""
    made = plan(scale)
    common = partial(SignalTrial, start=start, keep=keep, depth=made.depth, width=made.width)
    return tuple(common(seed) for seed in made.seeds)


def trained_vgg(
    scale: Scale, optimiser: Optimiser, rate: float, corrected: bool
) -> tuple[TrainingTrial, ...]:
    """The VGG-like network, trained from one of the starts, one per seed."""
    made = plan(scale)
    settings = replace(optimiser.settings, learning_rate=rate)
    return tuple(
        TrainingTrial(
            seed, made.vgg, made.vgg_data[1], settings, ("errors",), treatment=WeightStart(corrected)
        )
        for seed in made.seeds
    )


def trained_dense(scale: Scale, one: Reestimation, *, halfway: bool) -> tuple[TrainingTrial, ...]:
    """A network with norms, at the end of its training or at half of it, one per seed."""
    settings = one.settings
    if halfway:  # up to there the learning rate is constant
        settings = replace(settings, epochs=settings.epochs // 2, schedule="constant")
    return tuple(
        TrainingTrial(seed, one.network, one.data, settings, ("errors", "adjusted", "variance_only", "shift"))
        for seed in plan(scale).seeds
    )


def vgg_cells(made: Plan) -> Iterator[tuple[Optimiser, float, bool]]:
    """Every optimiser, learning rate, and whether the start is corrected."""
    for optimiser in made.optimisers:
        for rate in optimiser.rates:
            for corrected in (True, False):
                yield optimiser, rate, corrected
