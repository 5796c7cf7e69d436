"""Weight rescaling against weight decay (Liu et al. 2022, arXiv 2102.03497).

The body of the paper was not available: its algorithm and its tables are not known, and there is no figure to
compare with. The networks and the grid below are our own; its claims are those of its abstracts and of the
caption of its Figure 1.

How the settings of the scale ``laptop`` were chosen: one seed was trained for 20 epochs, 300 steps, with
decays of 0, 0.0005 and 0.005. The norms of filters ended at 1.44, 1.33 and 0.72, so that the decay of long
trainings hardly acts in one this short; ten times as much was taken. Rate, milestones and network were not
tuned.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from varshift.trials import Trial
from varshift_lab.data import Augmentation
from varshift_lab.recipes._weight_rescaling_treatment import MatchedRateTrial, RescalingTreatment
from varshift_lab.studies import Claim, Curve, Figure, Panel, Recipe, Row, Scale, Series, Table
from varshift_lab.training import DataChoice, Network, TrainingSettings, TrainingTrial

_ABSTRACT = "arXiv 2102.03497v1, abstract"
_CAPTION = "arXiv 2102.03497v1, caption of Figure 1 (VGG16 on CIFAR-10)"


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is trained at a scale."""

    title: str
    network: Network
    data: DataChoice
    settings: TrainingSettings
    shape: tuple[int, int, int]
    steps: int
    decays: tuple[float, ...]
    seeds: range

    def trial(self, decay: float, interval: int, scale_state: bool = True) -> TrainingTrial:
        """One training; `interval` in steps, 0 without rescaling. Rescaled filters never decay."""
        return TrainingTrial(
            0,
            self.network,
            self.data,
            replace(self.settings, weight_decay=decay),
            treatment=RescalingTreatment(self.shape, interval, scale_state),
        )

    def matched(self) -> MatchedRateTrial:
        """Rescaling at the rate that fits the largest decay, which the other weights keep."""
        return MatchedRateTrial(0, self.trial(self.decays[-1], 0), self.trial(self.decays[-1], 1))

    def series(self, trial: Trial, quantity: str) -> Series:
        """A quantity over the seeds."""
        return Series(tuple(replace(trial, seed=seed) for seed in self.seeds), quantity)

    @property
    def arms(self) -> dict[tuple[str, str], TrainingTrial]:
        """All of the grid: by what is rescaled, and by the decay of what is not."""
        kinds = {
            "no rescaling": (0, True),
            "every step": (1, True),
            "every epoch": (self.steps, True),
            "every epoch, momentum as it is": (self.steps, False),
        }
        return {
            (name, f"{decay:g}"): self.trial(decay, interval, kept)
            for name, (interval, kept) in kinds.items()
            for decay in self.decays
        }


def _plan(scale: Scale) -> _Plan:
    # Rates, decay and milestones of the closest operator whose code is public (arXiv 1710.02338).
    settings = TrainingSettings(
        epochs=160, batch_size=128, learning_rate=0.1, milestones=(0.5, 0.75), decay=0.2, nesterov=False
    )
    if scale == "paper":
        return _Plan(
            "VGG of 13 convolutions on CIFAR-10",
            Network.of("vgg", depth=15, norm="batch", placement="none"),
            DataChoice("cifar10"),
            replace(settings, augmentation=Augmentation(pad=4, flip=0.5)),
            (3, 32, 32),
            50_000 // 128,
            (0.0, 1e-4, 5e-4),
            range(5),
        )
    if scale == "smoke":
        return _Plan(
            "ResNet-8, width 8, on digits",
            Network.of("resnet", depth=8, width=8),
            DataChoice("digits", train=640, test=200),
            replace(settings, epochs=4, batch_size=64),
            (1, 8, 8),
            10,
            (0.0, 5e-4),
            range(2),
        )
    return _Plan(
        "ResNet-8, width 16, on CIFAR-10",
        Network.of("resnet", depth=8, width=16),
        DataChoice("cifar10", train=2000, test=4000, size=16),
        replace(settings, epochs=20),
        (3, 16, 16),
        2000 // 128,
        (0.0, 5e-3),
        range(3),
    )


def grid(scale: Scale) -> Table:
    """Test errors of the whole grid, and of the matched rate."""
    plan = _plan(scale)
    rows = [Row(labels, plan.series(trial, "test_error")) for labels, trial in plan.arms.items()]
    decay = f"{plan.decays[-1]:g}"
    rows.append(Row(("every step, matched rate", decay), plan.series(plan.matched(), "test_error")))
    return Table(
        "grid",
        f"Weight rescaling and weight decay: {plan.title}",
        ("filters are rescaled", "decay of the other weights"),
        "test error, %",
        tuple(rows),
        "Without rescaling all weights decay. With it the filters do not, and the last layer, biases and "
        "batch norms do. 'Momentum as it is' leaves the optimiser's memory unscaled. The matched rate is "
        "that of the training with decay, over the square of its final median filter norm. The figures of "
        "the paper are not known.",
    )


def dynamics(scale: Scale) -> Table:
    """Norms and angles at the end, and how fast it went."""
    plan = _plan(scale)
    quantities = {
        "norm": "median filter norm at the end",
        "train_loss_mean": "mean training loss over all epochs",
        "train_error_eval": "training error at the end, %",
    }
    arms: dict[str, Trial] = {
        "no rescaling, no decay": plan.trial(0.0, 0),
        f"no rescaling, decay {plan.decays[-1]:g}": plan.trial(plan.decays[-1], 0),
        "rescaling every step": plan.trial(plan.decays[-1], 1),
        "rescaling every epoch": plan.trial(plan.decays[-1], plan.steps),
        "rescaling every step, matched rate": plan.matched(),
    }
    rows = [
        Row((name, text), plan.series(trial, quantity))
        for name, trial in arms.items()
        for quantity, text in quantities.items()
    ]
    rows.append(
        Row(
            ("rescaling every step, matched rate", "learning rate at the start"),
            plan.series(plan.matched(), "rate"),
        )
    )
    return Table(
        "dynamics",
        f"What the norms of the filters do, and how fast training goes: {plan.title}",
        ("training", "figure"),
        "as the figure says",
        tuple(rows),
        f"Learning rate {plan.settings.learning_rate:g} at the start but for the matched one.",
    )


def figure1(scale: Scale) -> Figure:
    """Training of the three, and the norms and angles behind it."""
    plan = _plan(scale)
    decay = plan.decays[-1]
    arms: dict[str, Trial] = {
        f"weight decay {decay:g}": plan.trial(decay, 0),
        "neither": plan.trial(0.0, 0),
        "rescaling": plan.trial(decay, 1),
        "rescaling, matched rate": plan.matched(),
    }
    panels = {
        "train_error_history": ("training error", "%"),
        "norm_history": ("median norm of filters", "norm"),
        "angle_history": ("turn of a filter in a step", "radians"),
    }
    epochs = tuple(float(epoch) for epoch in range(1, plan.settings.epochs + 1))
    return Figure(
        "figure1",
        "Weight rescaling against weight decay",
        tuple(
            Panel(
                title,
                tuple(Curve(name, (plan.series(trial, quantity),), epochs) for name, trial in arms.items()),
                "epoch",
                unit,
            )
            for quantity, (title, unit) in panels.items()
        ),
        columns=3,
        note=f"{plan.title}. After Figure 1 of the paper's first version, of which only the caption is "
        "known. Its curve of a scaled learning rate is left out, since the scaling is not known.",
    )


def claims(scale: Scale) -> tuple[Claim, ...]:
    """What the abstracts and a caption say."""
    plan = _plan(scale)
    decay = plan.decays[-1]
    decayed, rescaled, neither = plan.trial(decay, 0), plan.trial(decay, 1), plan.trial(0.0, 0)

    def error(trial: Trial) -> Series:
        return plan.series(trial, "test_error")

    return (
        Claim(
            f"Rescaling ends at a test error no worse than decay {decay:g}, by 1 point",
            error(rescaled),
            error(decayed),
            margin=1.0,
            source=_ABSTRACT,
        ),
        Claim(
            "Rescaling ends at a lower test error than neither",
            error(plan.trial(0.0, 1)),
            error(neither),
            source=_ABSTRACT,
        ),
        Claim(
            "Rescaling converges faster than decay: a lower mean training loss over all epochs",
            plan.series(rescaled, "train_loss_mean"),
            plan.series(decayed, "train_loss_mean"),
            source=_CAPTION,
        ),
        Claim(
            "Without decay the norms of filters end above those under decay",
            plan.series(decayed, "norm"),
            plan.series(neither, "norm"),
            source=_ABSTRACT,
        ),
        Claim(
            "At the matched rate rescaling does no harm against decay, by 1 point",
            error(plan.matched()),
            error(decayed),
            margin=1.0,
            source="derived: equal turns of the filters in the end",
        ),
    )


RECIPE = Recipe(
    name="weight-rescaling",
    title="Weight Rescaling: Effective and Robust Regularization for Deep Neural Networks with Batch "
    "Normalization",
    source="Z. Liu, Y. Cui, J. Wan, Y. Mao, A. B. Chan, 2022, arXiv 2102.03497v2",
    tables={"grid": grid, "dynamics": dynamics},
    figures={"figure1": figure1},
    claims=claims,
)
