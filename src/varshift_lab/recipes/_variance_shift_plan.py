"""Which networks the variance-shift recipe trains at which scale, and how."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

from varshift_lab.data import Augmentation

# Registers the measures that the trials ask for.
from varshift_lab.recipes import _variance_shift_measures as _measures  # noqa: F401
from varshift_lab.studies import Scale
from varshift_lab.training import DataChoice, Network, TrainingSettings, TrainingTrial

# DROP probabilities of Dropout-(a) and (b); those in front of the last layer, and half-widths of Uout.
RATES = (0.0, 0.1, 0.3, 0.5, 0.7)
MILD_RATES = (0.0, 0.1, 0.2, 0.3, 0.5)

# The networks of Figure 5, which follows the training.
FOLLOWED = ("PreResNet", "DenseNet")


@dataclass(frozen=True, slots=True)
class Subject:
    """One network and how it is trained.

    Attributes:
        name: As in the paper's tables.
        network: The network without dropout.
        settings: Its training.
        whole: Whether it takes part in everything, or in Table 3 alone.
    """

    name: str
    network: Network
    settings: TrainingSettings
    whole: bool = True


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run at one scale.

    Attributes:
        subjects: The networks.
        data: By the names of the paper's columns.
        seeds: One trial each.
        rates: Of Dropout-(a) and (b), 0 and 0.5 among them.
        mild_rates: Of the dropout before the last layer, and of Uout.
        tolerance: What still counts as no harm, in points of the test error.
        note: How the scale was chosen.
    """

    subjects: tuple[Subject, ...]
    data: tuple[tuple[str, DataChoice], ...]
    seeds: tuple[int, ...]
    rates: tuple[float, ...]
    mild_rates: tuple[float, ...]
    tolerance: float
    note: str

    @property
    def whole(self) -> tuple[Subject, ...]:
        """The networks that take part in everything."""
        return tuple(subject for subject in self.subjects if subject.whole)


def plan(scale: Scale) -> Plan:
    """What is run at this scale."""
    return {"smoke": _smoke, "laptop": _laptop, "paper": _paper}[scale]()


def _paper() -> Plan:
    """The settings of the code base that the paper names as its own; the paper says no more than that."""
    standard = Augmentation(pad=4, flip=0.5)
    common = partial(
        TrainingSettings, learning_rate=0.1, nesterov=False, augmentation=standard, drop_last=False
    )
    late = common(epochs=300, batch_size=128, milestones=(150 / 300, 225 / 300))
    subjects = (
        Subject(
            "PreResNet",
            Network.of("preresnet", depth=110),
            common(epochs=164, batch_size=128, milestones=(81 / 164, 122 / 164), weight_decay=1e-4),
        ),
        Subject("ResNeXt", Network.of("resnext", depth=29), replace(late, weight_decay=5e-4)),
        Subject(
            "WRN",
            Network.of("wide_resnet", depth=28, widen=10),
            common(epochs=200, batch_size=128, milestones=(0.3, 0.6, 0.8), decay=0.2, weight_decay=5e-4),
        ),
        Subject("DenseNet", Network.of("densenet_bc", depth=100, growth=12), replace(late, batch_size=64)),
    )
    data = (("CIFAR-10", DataChoice("cifar10")), ("CIFAR-100", DataChoice("cifar100")))
    return Plan(
        subjects,
        data,
        seeds=(0, 1, 2, 3, 4),
        rates=RATES,
        mild_rates=MILD_RATES,
        tolerance=0.5,
        note="The paper's networks, data and schedules, 5 seeds as there.",
    )


def _laptop() -> Plan:
    """Forty minutes of one core: 72 trials of half a minute each.

    How it was chosen: half a minute is 500 to 800 steps on images of 8x8 pixels, in which wide networks learn
    best and lose little to the shift. Tried by hand, with one or two seeds, for the test error of Dropout-(a)
    0.5 as trained, the same adjusted, and that of Dropout-(b) 0.5: PreResNet-56 of basic blocks and width 8,
    66.8, 66.4 and 65.8 %; PreResNet-20 of width 16, 56.5, 57.8 and 56.2 %; PreResNet-56 of bottlenecks and
    width 4, 68.5, 65.4 and 64.5 %; DenseNet-BC-40 with a growth of 6, 68.5, 62.4 and 63.9 %. The last two,
    narrow and deep, are ill enough for half a minute to tell, and were taken. The margin of no harm is 2
    points, of errors around 60 % that 4,000 images give to within 0.8.
    """
    common = partial(
        TrainingSettings,
        batch_size=64,
        learning_rate=0.1,
        milestones=(0.5, 0.8),
        warmup=0.1,
        weight_decay=5e-4,
        augmentation=Augmentation(pad=1, flip=0.5),
    )
    subjects = (
        Subject(
            "PreResNet", Network.of("preresnet", depth=56, block="bottleneck", width=4), common(epochs=12)
        ),
        Subject("WRN", Network.of("wide_resnet", depth=16, widen=4, width=8), common(epochs=8), whole=False),
        Subject("DenseNet", Network.of("densenet_bc", depth=40, growth=6), common(epochs=8)),
    )
    return Plan(
        subjects,
        (("CIFAR-10", DataChoice("cifar10", train=4000, test=4000, size=8)),),
        seeds=(0, 1, 2),
        rates=(0.0, 0.1, 0.3, 0.5),
        mild_rates=(0.0, 0.1, 0.5),
        tolerance=2.0,
        note="Narrow networks (PreResNet-56, bottlenecks, width 4; WRN-16-4, width 8; DenseNet-BC-40, k=6), "
        "4,000 images of 8x8 pixels, 8 to 12 epochs.",
    )


def _smoke() -> Plan:
    common = partial(TrainingSettings, batch_size=64, learning_rate=0.1, warmup=0.1, weight_decay=5e-4)
    subjects = (
        Subject("PreResNet", Network.of("preresnet", depth=20, width=4), common(epochs=3)),
        Subject("DenseNet", Network.of("densenet_bc", depth=22, growth=4), common(epochs=3)),
    )
    return Plan(
        subjects,
        (("digits", DataChoice("digits")),),
        seeds=(0, 1),
        rates=(0.0, 0.1, 0.5),
        mild_rates=(0.0, 0.5),
        tolerance=5.0,
        note="Small networks, briefly trained on 8x8 digits: that all of it runs, not what the paper claims.",
    )


def trials(
    scale: Scale,
    subject: Subject,
    data: DataChoice,
    rate: float,
    placement: str = "a",
    noise: str = "dropout",
) -> tuple[TrainingTrial, ...]:
    """The trials of one configuration, one per seed. At rate 0 all of them are one and the same.

    What is measured beyond errors, adjusted errors and shifts follows from the figures that the
    configuration has a part in, so that every table asks for the same trials.
    """
    network, settings, measures = subject.network, subject.settings, ["errors", "adjusted", "augmented_shift"]
    if rate:
        added = {"dropout": rate, "placement": placement}
        if noise != "dropout":
            added["noise"] = noise
        network = Network.of(network.family, **dict(network.arguments), **added)
    else:
        measures.append("filters")
    main = rate in (0.0, 0.5) and (not rate or (placement, noise) == ("a", "dropout"))
    if main and subject.name in FOLLOWED:
        settings = replace(settings, probe_every=1)
    if main and rate and subject.name == "DenseNet":
        measures.append("switched_images")
    return tuple(TrainingTrial(seed, network, data, settings, tuple(measures)) for seed in plan(scale).seeds)


def cells(scale: Scale, *, everything: bool = False) -> Iterator[tuple[str, DataChoice, Subject]]:
    """Every data set with every network that takes part in all, or also with those of Table 3."""
    made = plan(scale)
    for label, data in made.data:
        for subject in made.subjects if everything else made.whole:
            yield label, data, subject
