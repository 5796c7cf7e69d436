"""Rethinking the usage of batch normalization and dropout in the training of deep neural networks.

G. Chen, P. Chen, Y. Shi, C.-Y. Hsieh, B. Liao, S. Zhang, arXiv 1905.05928 (2019). Of the paper only the
abstract could be read: none of its figures is known, and its blocks and its training are reconstructed. It
compares networks whose weights stand behind a norm and a dropout (IC) with ones that have the norm in front
of the ReLU, which changes two things at once. The control here has only the norm moved, and no dropout.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch

import varshift
from varshift.probe import draw_batches, measure
from varshift.trials import Measurements, Trial, Workbench
from varshift_lab.data import Augmentation, EpochLoader, subset
from varshift_lab.recipes._conditioning import conditioning
from varshift_lab.studies import Claim, Curve, Figure, Panel, PaperFigure, Recipe, Row, Scale, Series, Table
from varshift_lab.training import DataChoice, Network, TrainingSettings, TrainingTrial, own_random_state

# DROP probability of the paper's layer, as two readers of the paper give it.
RATE = 0.05
_MEASURES = ("errors", "adjusted", "shift", conditioning.__name__)

# Test errors on CIFAR-10 that Keras' example states or lists for the baselines, by order and kind of block;
# none is the paper's.
_BASELINES = {
    ("v1", "basic"): (7.35, "Keras' CIFAR-10 example, ResNet-110 v1, not the paper"),
    ("v1", "bottleneck"): (5.93, "listed by Keras' example from the original paper, ResNet-164"),
    ("v2", "bottleneck"): (5.46, "listed by Keras' example from the original paper, ResNet-164"),
}

# Variance collected with dropout over that of the same norm in evaluation, of untrained networks: means and
# largest of the norms, as measured earlier, each on batch statistics ("local") and as deployed.
INITIAL = {
    ("A", 20): (1.062, 1.099, 1.174, 1.280),
    ("A", 56): (1.060, 1.097, 1.318, 1.458),
    ("B", 20): (1.059, 1.088, 1.144, 1.262),
    ("B", 56): (1.060, 1.101, 1.267, 1.423),
    ("C", 20): (1.065, 1.094, 1.231, 1.378),
    ("C", 56): (1.059, 1.082, 1.314, 1.520),
}
_FIGURES = ("local_mean", "local_max", "deployed_mean", "deployed_max")


@dataclass(frozen=True)
class InitialShift(Trial):
    """How much the dropout of an untrained network shifts the variances at its norms.

    Attributes:
        network: The network.
        data: Its test images are used.
        batch_size: Images per batch.
    """

    network: Network
    data: DataChoice
    batch_size: int = 64

    @property
    def title(self) -> str:
        """Network, data and seed."""
        arguments = ", ".join(f"{name}={value}" for name, value in self.network.arguments)
        return f"untrained {self.network.family}({arguments}) on {self.data.name}, seed {self.seed}"

    def run(self, workbench: Workbench) -> Measurements:
        """Collects statistics in train mode and compares them with the variances in evaluation."""
        _, images = self.data.load(workbench)
        some = subset(images, len(images) - len(images) % self.batch_size, balanced=False)
        with own_random_state(workbench.device):
            torch.manual_seed(self.seed)
            network = self.network.build(images).to(workbench.device)
            loader = EpochLoader(some, self.batch_size, seed=self.seed, device=workbench.device)
            varshift.recalibrate(network, loader, noise=True)
            states = measure(network, draw_batches(loader, None, None))
        layers = [layer for layer in states.layers if layer.reached]
        # The known ratios have the learned variance on top, the probe's the deployed one.
        found: dict[str, float | list[float]] = {}
        for name, ratios in (
            ("local", [1 / (layer.local_ratio or 1.0) for layer in layers]),
            ("deployed", [1 / (layer.ratio or 1.0) for layer in layers]),
        ):
            found[f"{name}_mean"] = math.exp(sum(map(math.log, ratios)) / len(ratios))
            found[f"{name}_max"] = max(ratios)
            found[f"{name}_layers"] = ratios
        return found


@dataclass(frozen=True, slots=True)
class Order:
    """In which order a network has norm, activation, dropout and weight.

    Attributes:
        name: For the table.
        family: Its function.
        arguments: What makes it this order.
        rate: DROP probability.
    """

    name: str
    family: str
    arguments: tuple[tuple[str, str], ...] = ()
    rate: float = 0.0

    @property
    def label(self) -> tuple[str, str]:
        """Columns of the table."""
        return self.name, f"{self.rate:g}"


def variant(letter: str, rate: float) -> Order:
    """One of the paper's orders with a drop rate."""
    names = {"A": "A: ReLU-IC-weight", "B": "B: IC-weight-ReLU", "C": "C: weight-ReLU-IC"}
    return Order(names[letter], "ic_resnet", (("variant", letter),), rate)


V1 = Order("v1: weight-BN-ReLU", "resnet")
V2 = Order("v2: BN-ReLU-weight", "preresnet")
CONTROL, A = variant("A", 0.0), variant("A", RATE)
ORDERS = (V1, V2, CONTROL, A, *(variant(letter, rate) for letter in "BC" for rate in (0.0, RATE)))


@dataclass(frozen=True, slots=True)
class Subject:
    """A size of network.

    Attributes:
        name: For the table.
        arguments: Arguments of every order.
    """

    name: str
    arguments: tuple[tuple[str, int | str], ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run at one scale.

    Attributes:
        subjects: Sizes of the networks.
        data: The data sets.
        settings: The training.
        seeds: One trial each.
        rates: DROP probabilities of variant A.
        depths: Of the untrained networks.
        untrained: Data for those.
        note: How the scale was chosen.
    """

    subjects: tuple[Subject, ...]
    data: tuple[tuple[str, DataChoice], ...]
    settings: TrainingSettings
    seeds: tuple[int, ...]
    rates: tuple[float, ...]
    depths: tuple[int, ...]
    untrained: DataChoice
    note: str


def plan(scale: Scale) -> Plan:
    """What is run at this scale.

    At paper scale the training is that of Keras' CIFAR-10 example, which the paper is remembered to have
    used: Adam at 1e-3, a tenth from epochs 81, 121 and 161 of 200 on, batches of 32, shifts by a tenth. Its
    last step, by a half from epoch 181 on, is left out.
    """
    if scale == "paper":
        settings = TrainingSettings(
            epochs=200,
            batch_size=32,
            learning_rate=1e-3,
            milestones=(81 / 200, 121 / 200, 161 / 200),
            optimizer="adam",
            weight_decay=2e-4,  # Keras adds 1e-4 of the squares, torch 1e-4 / 2 of them
            decay_norms=False,
            augmentation=Augmentation(pad=3, flip=0.5),
        )
        return Plan(
            (
                Subject("ResNet-110", (("block", "basic"), ("depth", 110))),
                Subject("ResNet-164", (("block", "bottleneck"), ("depth", 164))),
            ),
            (("CIFAR-10", DataChoice("cifar10")), ("CIFAR-100", DataChoice("cifar100"))),
            settings,
            seeds=(0, 1, 2, 3, 4),
            rates=(0.0, 0.05, 0.1, 0.2),
            depths=(20, 56),
            untrained=DataChoice("cifar10", train=10, test=1024),
            note="Training of Keras' CIFAR-10 example; the paper's own is not known.",
        )
    small = TrainingSettings(
        epochs=3, batch_size=32, learning_rate=0.05, schedule="cosine", warmup=0.1, weight_decay=5e-4
    )
    if scale == "smoke":
        return Plan(
            (Subject("ResNet-8", (("block", "basic"), ("depth", 8), ("width", 4))),),
            (("digits", DataChoice("digits", train=640)),),
            small,
            seeds=(0, 1),
            rates=(0.0, 0.05, 0.2),
            depths=(8,),
            untrained=DataChoice("digits", test=128),
            note="A small network, briefly trained on 8x8 digits: shows that all of it runs, not what the "
            "paper claims.",
        )
    return Plan(
        (Subject("ResNet-14", (("block", "basic"), ("depth", 14), ("width", 8))),),
        (("CIFAR-10", DataChoice("cifar10", train=3000, test=2000, size=16)),),
        replace(
            small, epochs=6, batch_size=64, learning_rate=0.1, augmentation=Augmentation(pad=2, flip=0.5)
        ),
        seeds=(0, 1, 2),
        rates=(0.0, 0.05, 0.2),
        depths=(20, 56),
        untrained=DataChoice("cifar10", train=10, test=128),
        note="ResNet-14 of half the width on 3,000 images of CIFAR-10 at 16 x 16 pixels, 6 epochs.",
    )


def trials(scale: Scale, order: Order, subject: Subject, data: DataChoice) -> tuple[TrainingTrial, ...]:
    """The trials of one order, one per seed."""
    made = plan(scale)
    arguments = {**dict(subject.arguments), **dict(order.arguments)}
    if order.family == "ic_resnet":
        arguments |= {"placement": "ic", "dropout": order.rate} if order.rate else {"placement": "none"}
    network = Network.of(order.family, **arguments)
    return tuple(TrainingTrial(seed, network, data, made.settings, _MEASURES) for seed in made.seeds)


def _cells(scale: Scale) -> Iterable[tuple[str, DataChoice, Subject]]:
    made = plan(scale)
    return ((label, data, subject) for label, data in made.data for subject in made.subjects)


def orders(scale: Scale) -> Table:
    """Test errors of every order, with and without the dropout."""
    return _by_order(
        scale, "orders", "Test error by order of norm, activation and weight", "test_error", "test error, %"
    )


def speed(scale: Scale) -> Table:
    """How fast every order trains: its loss, averaged over all epochs."""
    return _by_order(
        scale, "speed", "Training loss, averaged over all epochs", "train_loss_mean", "cross-entropy"
    )


def conditions(scale: Scale) -> Table:
    """How well conditioned the inputs of the weights are in the end."""
    return _by_order(
        scale,
        "conditioning",
        "Condition number of the second moments of the weights' inputs",
        "condition",
        "geometric mean over layers",
    )


def _by_order(scale: Scale, name: str, title: str, quantity: str, unit: str) -> Table:
    rows = []
    for label, data, subject in _cells(scale):
        for order in ORDERS:
            stated = None
            kind = dict(subject.arguments).get("block")
            known = _BASELINES.get((order.name[:2], str(kind)))
            if scale == "paper" and label == "CIFAR-10" and known and quantity == "test_error":
                stated = PaperFigure(*known)
            series = Series(trials(scale, order, subject, data), quantity)
            rows.append(Row((label, subject.name, *order.label), series, stated))
    return Table(
        name,
        title,
        ("data", "network", "order", "drop rate"),
        unit,
        tuple(rows),
        "No figure of the paper is known. Drop rate 0 is the control: the norm's place without dropout. "
        + plan(scale).note,
    )


def rates(scale: Scale) -> Table:
    """Variant A at other drop rates, with the statistics of training and with adjusted ones."""
    rows = []
    for label, data, subject in _cells(scale):
        for rate in plan(scale).rates:
            run = trials(scale, variant("A", rate), subject, data)
            for name, quantity in (("of training", "test_error"), ("adjusted", "adjusted_test_error")):
                rows.append(Row((label, subject.name, f"{rate:g}", name), Series(run, quantity)))
    return Table(
        "rates",
        "Test error of variant A by drop rate, before and after the statistics are adjusted",
        ("data", "network", "drop rate", "statistics"),
        "test error, %",
        tuple(rows),
        "The dropout of an IC layer stands in front of every later norm: the rate has to be small. "
        + plan(scale).note,
    )


def untrained(scale: Scale, letter: str, depth: int) -> tuple[InitialShift, ...]:
    """The trials of one untrained network, one per seed."""
    made = plan(scale)
    network = Network.of("ic_resnet", depth=depth, variant=letter, dropout=RATE, placement="ic")
    return tuple(InitialShift(seed, network, made.untrained) for seed in made.seeds)


def initial_shift(scale: Scale) -> Table:
    """Shift of the variances at the norms of untrained networks, beside what was measured earlier."""
    rows = []
    for letter in "ABC":
        for depth in plan(scale).depths:
            run = untrained(scale, letter, depth)
            known = INITIAL.get((letter, depth), (None,) * 4)
            for name, value in zip(_FIGURES, known, strict=True):
                caveat = "not the paper's: an earlier measurement of ours, number of images and seeds unknown"
                stated = None if value is None else PaperFigure(value, caveat)
                kind, _, which = name.partition("_")
                rows.append(Row((letter, str(depth), kind, which), Series(run, name), stated))
    return Table(
        "initial-shift",
        f"Variance with dropout {RATE:g} over that in evaluation, untrained networks",
        ("variant", "depth", "ratio", "over norms"),
        "learned over deployed",
        tuple(rows),
        "Local: every norm on batch statistics. Deployed: in evaluation, on the statistics of training. "
        "Means are geometric.",
    )


def training(scale: Scale) -> Figure:
    """Training losses of the orders."""
    label, data, subject = next(iter(_cells(scale)))
    panels = []
    epochs = tuple(float(epoch) for epoch in range(1, plan(scale).settings.epochs + 1))
    for title, chosen in (
        ("the norm moved, no dropout", (V1, V2, CONTROL, variant("B", 0.0), variant("C", 0.0))),
        (f"with dropout {RATE:g}", (V1, V2, *(variant(letter, RATE) for letter in "ABC"))),
    ):
        curves = tuple(
            Curve(order.name, (Series(trials(scale, order, subject, data), "train_loss_history"),), epochs)
            for order in chosen
        )
        panels.append(Panel(title, curves, "epoch", "training loss"))
    return Figure("training", f"Training of {subject.name} on {label}", tuple(panels), note=plan(scale).note)


def shifts(scale: Scale) -> Figure:
    """Shift of every norm of variant A after training, and of the untrained variants."""
    label, data, subject = next(iter(_cells(scale)))
    trained = tuple(
        Curve(f"drop rate {rate:g}", (Series(trials(scale, variant("A", rate), subject, data), "shift"),))
        for rate in plan(scale).rates
    )
    depth = max(plan(scale).depths)
    fresh = tuple(
        Curve(f"variant {letter}", (Series(untrained(scale, letter, depth), "deployed_layers"),))
        for letter in "ABC"
    )
    return Figure(
        "shift",
        "Variance shift of networks of independent components",
        (
            Panel(f"variant A, trained on {label}", trained, "norm", "max(real/moving, moving/real)"),
            Panel(f"untrained, depth {depth}, dropout {RATE:g}", fresh, "norm", "moving / real"),
        ),
        note=plan(scale).note,
    )


def claims(scale: Scale) -> tuple[Claim, ...]:
    """What the abstract says, and what follows from its formulas."""
    found = []
    for label, data, subject in _cells(scale):
        where = f"{subject.name} on {label}"

        def of(order: Order, quantity: str, subject: Subject = subject, data: DataChoice = data) -> Series:
            return Series(trials(scale, order, subject, data), quantity)

        for base in (V1, V2):
            found += [
                Claim(
                    f"{where}: IC in front of the weight (A) makes fewer errors than {base.name}.",
                    of(A, "test_error"),
                    of(base, "test_error"),
                    source="abstract",
                ),
                Claim(
                    f"{where}: IC in front of the weight (A) trains faster than {base.name}.",
                    of(A, "train_loss_mean"),
                    of(base, "train_loss_mean"),
                    source="abstract: faster convergence",
                ),
            ]
        found += [
            Claim(
                f"{where}: the control without dropout makes fewer errors than {V2.name}.",
                of(CONTROL, "test_error"),
                of(V2, "test_error"),
                source="derived: the gain is that of the norm's place",
            ),
            Claim(
                f"{where}: the control without dropout trains faster than {V2.name}.",
                of(CONTROL, "train_loss_mean"),
                of(V2, "train_loss_mean"),
                source="derived: a better conditioned start",
            ),
            Claim(
                f"{where}: the dropout of A adds to what the control gains.",
                of(A, "test_error"),
                of(CONTROL, "test_error"),
                source="the paper credits both parts of IC",
            ),
            Claim(
                f"{where}: the norm behind the ReLU conditions the weights' inputs better than {V2.name}.",
                of(CONTROL, "condition"),
                of(V2, "condition"),
                source="derived: condition numbers of 38.8 against 164.8 in an earlier numerical check",
            ),
            Claim(
                f"{where}: the dropout conditions them better still.",
                of(A, "condition"),
                of(CONTROL, "condition"),
                source="derived: dropout takes correlations down by its keep probability squared",
            ),
            *(
                Claim(
                    f"{where}: variant A makes fewer errors than variant {letter}.",
                    of(A, "test_error"),
                    of(variant(letter, RATE), "test_error"),
                    source="two readers of the paper name A as recommended",
                )
                for letter in "BC"
            ),
            Claim(
                f"{where}: the norms of A at {max(plan(scale).rates):g} are shifted more than at {RATE:g}.",
                of(A, "shift_mean"),
                of(variant("A", max(plan(scale).rates)), "shift_mean"),
                source="derived: noise in front of a norm through a weight, case (b)",
            ),
        ]
    return tuple(found)


RECIPE = Recipe(
    "independent-component",
    "Rethinking the Usage of Batch Normalization and Dropout in the Training of Deep Neural Networks",
    "G. Chen, P. Chen, Y. Shi, C.-Y. Hsieh, B. Liao, S. Zhang, arXiv 1905.05928 (2019)",
    tables={
        "orders": orders,
        "speed": speed,
        "rates": rates,
        "conditioning": conditions,
        "initial-shift": initial_shift,
    },
    figures={"training": training, "shift": shifts},
    claims=claims,
)
