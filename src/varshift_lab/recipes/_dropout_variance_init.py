"""Adjusting for dropout variance in batch normalization and weight initialization.

D. Hendrycks, K. Gimpel, arXiv 1607.02488 (version of November 2016): the start of the weights on signals and
on the VGG-like network, and norms whose variance is estimated anew without dropout. Left out: MNIST and
SVHN, which are no data sets of this package.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

from varshift.nn.init import dropout_corrected_
from varshift.probe import find_norms, preserved
from varshift_lab.data import Augmentation, EpochLoader, Images
from varshift_lab.recipes._dropout_variance_signal import SignalTrial, Start
from varshift_lab.studies import (
    Claim,
    Curve,
    Figure,
    Measurements,
    Panel,
    PaperFigure,
    Recipe,
    Row,
    Scale,
    Series,
    Table,
    Workbench,
)
from varshift_lab.training import (
    DataChoice,
    Network,
    TrainingSettings,
    TrainingTrial,
    Treatment,
    evaluate,
    measure,
)

STARTS: dict[Start, str] = {
    "corrected": "corrected, forward",
    "paper": "corrected, both as printed",
    "autograd": "corrected, both for autograd",
    "he": "He",
    "xavier": "Xavier",
}
KEEPS = (1.0, 0.6)
ONE_RUN = "one run, no spread stated"


@dataclass(frozen=True)
class WeightStart(Treatment):
    """Draws the weights anew: corrected for the dropout that feeds each layer, or as He et al.

    Corrected weights have orthonormal filters of the norm that keeps the forward signal, as in the authors'
    code (but for a first convolution, whose filters it leaves too short). Max-pooling is ignored, as there.

    Attributes:
        corrected: Which of the two.
    """

    corrected: bool

    def prepare(self, model: nn.Module) -> None:
        """Draws all weights and sets biases to 0."""
        feeds, keep = "identity", 1.0
        for module in model.modules():
            if isinstance(module, (nn.Dropout, nn.Dropout2d)):
                keep = 1 - module.p
            elif isinstance(module, (nn.Conv2d, nn.Linear)):
                if self.corrected:
                    dropout_corrected_(module, feeds, keep_in=keep, distribution="orthogonal")
                else:
                    nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)
                feeds, keep = "relu", 1.0


@measure("variance_only")
def variance_only(
    model: nn.Module, train: Images, test: Images, workbench: Workbench, settings: TrainingSettings
) -> Measurements:
    """Test error after one pass in which the norms renew their variances and nothing else.

    As in the paper: dropout off, norms on the statistics of each batch, moving averages of the variances with
    the norms' own momentum, means kept. (The authors' code averages ``1 / sqrt(var + eps)`` and runs five
    such passes, which differs by little.)
    """
    loader = EpochLoader(train, min(settings.batch_size, len(train)), drop_last=settings.drop_last)
    with preserved(model, seed=0), torch.no_grad():
        model.eval()
        norms = find_norms(model)
        means = [norm.mean.clone() for norm in norms]
        for norm in norms:
            norm.module.train(True)
        for inputs, _ in loader:
            model(inputs)
        for norm, mean in zip(norms, means, strict=True):
            norm.mean.copy_(mean)
        found = evaluate(model, EpochLoader(test, 500, order="stored"))
    return {"variance_only_test_error": found.error, "variance_only_test_loss": found.loss}


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


def gain(scale: Scale) -> Table:
    """What a layer does to the second moment of signal and gradient."""
    rows = []
    for keep in KEEPS:
        for start, name in STARTS.items():
            for what in ("signal", "gradient"):
                labels = (f"{keep:g}", name, what)
                rows.append(Row(labels, Series(signals(scale, start, keep), f"{what}_gain")))
    made = plan(scale)
    return Table(
        "gain",
        "Gain of a layer at the start, ReLU",
        ("keep", "start", "of"),
        "factor of the second moment per layer",
        tuple(rows),
        f"Geometric mean over {made.depth} layers of {made.width} units. 1 is right; the paper prints "
        "densities instead.",
    )


def vgg(scale: Scale) -> Table:
    """The VGG-like network from both starts."""
    made = plan(scale)
    rows = []
    for optimiser, rate, corrected in _vgg_cells(made):
        value = optimiser.paper[0 if corrected else 1]
        caveat = f"one figure per optimiser and start, the rate is not said; {ONE_RUN}"
        if scale != "paper":
            caveat = f"full-size network and schedule, CIFAR-10; {caveat}"
        rows.append(
            Row(
                (made.vgg_data[0], optimiser.name, f"{rate:g}", _started(corrected)),
                Series(trained_vgg(scale, optimiser, rate, corrected), "test_error"),
                PaperFigure(value, caveat),
            )
        )
    return Table(
        "vgg",
        "VGG-like network without norms, by the start of its weights",
        ("data", "optimiser", "learning rate", "start"),
        "test error, %",
        tuple(rows),
        made.note,
    )


def reestimation(scale: Scale) -> Table:
    """DenseNets with dropout in front of norms, before and after the norms are estimated anew."""
    rows = []
    kinds = (("of training", "test_error"), ("new variances", "variance_only_test_error"))
    for one in plan(scale).reestimations:
        for time, halfway in (("halfway", True), ("final", False)):
            run = trained_dense(scale, one, halfway=halfway)
            for place, (statistics, quantity) in enumerate(kinds):
                value = PaperFigure(one.paper[place + (0 if halfway else 2)], ONE_RUN) if one.paper else None
                rows.append(Row((*one.label, time, statistics), Series(run, quantity), value))
            labels = (*one.label, time, "new means and variances")
            rows.append(Row(labels, Series(run, "adjusted_test_error")))
    return Table(
        "reestimation",
        "Statistics of norms estimated anew without dropout",
        ("data", "network", "drop ratio", "time", "statistics"),
        "test error, %",
        tuple(rows),
        plan(scale).note,
    )


def figure1(scale: Scale) -> Figure:
    """Figure 1: the signal on its way through the layers; here its second moment."""
    return _signal_figure(scale, "figure1", "signal", "Figure 1: the signal at the start, layer by layer")


def figure4(scale: Scale) -> Figure:
    """Figure 4: the gradient on its way back; here its second moment, as autograd computes it."""
    return _signal_figure(scale, "figure4", "gradient", "Figure 4: the gradient at the start, layer by layer")


def _signal_figure(scale: Scale, name: str, quantity: str, title: str) -> Figure:
    panels = tuple(
        Panel(
            f"keep {keep:g}",
            tuple(
                Curve(label, (Series(signals(scale, start, keep), quantity),))
                for start, label in STARTS.items()
            ),
            "layer",
            "second moment",
            log_y=True,
        )
        for keep in KEEPS
    )
    return Figure(name, title, panels, note="The paper shows densities, of other widths.")


def figure3(scale: Scale) -> Figure:
    """Figure 3: training loss of the VGG-like network, from both starts."""
    made = plan(scale)
    panels = []
    for optimiser in made.optimisers:
        curves = tuple(
            Curve(
                f"{_started(corrected)}, rate {rate:g}",
                (Series(trained_vgg(scale, optimiser, rate, corrected), "train_loss_history"),),
                tuple(float(epoch) for epoch in range(1, optimiser.settings.epochs + 1)),
            )
            for one, rate, corrected in _vgg_cells(made)
            if one is optimiser
        )
        panels.append(Panel(optimiser.name, curves, "epoch", "training loss"))
    return Figure("figure3", "Figure 3: training loss of the VGG-like network", tuple(panels), note=made.note)


def claims(scale: Scale) -> tuple[Claim, ...]:
    """What the paper says."""
    made = plan(scale)
    found = []
    for keep in KEEPS:
        corrected = signals(scale, "corrected", keep)
        for start in ("he", "xavier"):
            if start == "he" and keep == 1:
                continue  # one and the same start
            found.append(
                Claim(
                    f"keep {keep:g}: the corrected start moves the signal by fewer powers of ten than "
                    f"{STARTS[start]}'s.",
                    Series(corrected, "signal_drift"),
                    Series(signals(scale, start, keep), "signal_drift"),
                    source="Figure 1",
                )
            )
    for optimiser in made.optimisers:
        for rate in optimiser.rates:
            ours, he = (trained_vgg(scale, optimiser, rate, corrected) for corrected in (True, False))
            where = f"VGG, {optimiser.name} at {rate:g}: the corrected start"
            found += [
                Claim(
                    f"{where} has less training loss than He's, on average over the epochs.",
                    Series(ours, "train_loss_mean"),
                    Series(he, "train_loss_mean"),
                    source="Figure 3",
                ),
                Claim(
                    f"{where} makes fewer errors than He's.",
                    Series(ours, "test_error"),
                    Series(he, "test_error"),
                    source="the table of test errors",
                ),
            ]
    for one in made.reestimations:
        for time, halfway in (("halfway", True), ("in the end", False)):
            run = trained_dense(scale, one, halfway=halfway)
            found.append(
                Claim(
                    f"{one.label[1]} on {one.label[0]}, drop ratio {one.label[2]}: new variances make fewer "
                    f"errors {time}.",
                    Series(run, "variance_only_test_error"),
                    Series(run, "test_error"),
                    source="the table of re-estimated norms",
                )
            )
    return tuple(found)


def _vgg_cells(made: Plan) -> Iterator[tuple[Optimiser, float, bool]]:
    for optimiser in made.optimisers:
        for rate in optimiser.rates:
            for corrected in (True, False):
                yield optimiser, rate, corrected


def _started(corrected: bool) -> str:
    return STARTS["corrected" if corrected else "he"]


RECIPE = Recipe(
    "dropout-variance-init",
    "Adjusting for Dropout Variance in Batch Normalization and Weight Initialization",
    "D. Hendrycks, K. Gimpel, arXiv 1607.02488 (2016)",
    tables={"gain": gain, "vgg": vgg, "reestimation": reestimation},
    figures={"figure1": figure1, "figure3": figure3, "figure4": figure4},
    claims=claims,
)
