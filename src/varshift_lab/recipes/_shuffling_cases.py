"""The configurations of the shuffling recipe, and the figures that they are compared with."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from varshift.trials import Trial
from varshift_lab.recipes._shuffling_data import BlockToy, GaussianSigns, ImageVectors
from varshift_lab.recipes._shuffling_trials import Order, ShufflingTrial
from varshift_lab.studies import Scale, Series
from varshift_lab.training import DataChoice, Network, TrainingSettings, TrainingTrial

EARLIER = "an earlier re-implementation with other random numbers, not the paper"
TWO_SEEDS = f"{EARLIER}; 2 seeds, and how its inputs were scaled is not recorded"
CLOSED_FORM = "closed form for Gaussian data"

# Batch size -> order -> what the earlier run of 8 seeds and 1,000 epochs gave.
TOY: dict[int, dict[Order, tuple[float, ...]]] = {
    2: {"single": (0.349, 1.24, 27, 1.37, 8.2), "reshuffle": (0.568, 0.30, 4, 0.30, 1.3)},
    4: {"single": (0.097, 0.82, 16, 0.87, 15.0), "reshuffle": (0.347, 0.115, 2, 0.118, 3.5)},
    8: {"single": (0.010, 0.26, 9, 0.26, 14.5), "reshuffle": (0.187, 0.028, 0.5, 0.030, 7.2)},
    16: {"single": (0.027, 0.036, 1, 0.036, 10.2), "reshuffle": (0.133, 0.012, 0, 0.012, 8.6)},
}
TOY_FIGURES = ("own_loss", "full_batch_loss", "full_batch_error", "eval_loss", "norm")
INDEX: dict[Order, tuple[float, ...]] = {
    "single": (1.25, 0.96, 0.36, 0.07),
    "reshuffle": (0.03, -0.01, 0.02, 0.01),
}
NAMES = {
    "own_loss": "loss on its own batches",
    "printed_loss": "loss as printed in training",
    "full_batch_loss": "training risk",
    "full_batch_error": "training error, %",
    "eval_loss": "eval-mode loss on training data",
    "eval_error": "eval-mode error on training data, %",
    "test_loss": "test loss",
    "test_error": "test error, %",
    "norm": "norm of the weights",
}
ORDERS: dict[Order, str] = {
    "single": "single shuffle",
    "batches": "fixed batches, reordered",
    "replacement": "with replacement",
    "reshuffle": "random reshuffling",
}
BOTH: tuple[Order, ...] = ("single", "reshuffle")


def seeds_at(scale: Scale) -> range:
    """Seeds of what takes seconds."""
    return range({"smoke": 2, "laptop": 5, "paper": 8}[scale])


def image_seeds_at(scale: Scale) -> range:
    """Seeds of networks on images."""
    return range({"smoke": 2, "laptop": 3, "paper": 5}[scale])


def series_of(seeds: range, trial: Trial, quantity: str) -> Series:
    """A quantity of a trial over seeds."""
    return Series(tuple(replace(trial, seed=seed) for seed in seeds), quantity)


def toy_trial(
    scale: Scale, order: Order, batch_size: int, epochs: int | None = None, cure: int = 0
) -> ShufflingTrial:
    """48 Gaussian vectors of 32 features, and the network of the theory."""
    if epochs is None:
        epochs = 300 if scale == "smoke" else 1000
    return ShufflingTrial(
        0, GaussianSigns(), order=order, batch_size=batch_size, epochs=epochs, cure=cure, shift=False
    )


def blocks_trial(scale: Scale, order: Order) -> ShufflingTrial:
    """The authors' six points."""
    epochs = 300 if scale == "smoke" else 2000
    return ShufflingTrial(0, BlockToy(), order=order, batch_size=2, epochs=epochs, shift=False)


def image_cases(scale: Scale) -> dict[str, tuple[ShufflingTrial, dict[str, dict[str, float]]]]:
    """The networks on images, with the earlier figures: printed loss, eval-mode loss and error."""

    def figures(*values: float) -> dict[str, float]:
        return dict(zip(("printed_loss", "eval_loss", "eval_error"), values, strict=True))

    if scale == "smoke":
        data = ImageVectors("digits", train=512, test=None, components=32)
        base = ShufflingTrial(0, data, width=64, batch_size=16, epochs=20)
        return {
            "linear, 3 layers": (replace(base, depth=3), {}),
            "ReLU, 3 layers": (replace(base, depth=3, relu=True), {}),
        }
    if scale == "paper":
        # The defaults of the released code; the flags behind each figure are not in it.
        base = ShufflingTrial(
            0,
            ImageVectors("cifar10", None, None, None),
            width=512,
            batch_size=128,
            learning_rate=1e-3,
            epochs=100,
        )
        kinds = {
            "linear, 1 layer": replace(base, depth=1),
            "linear, 2 layers": replace(base, depth=2),
            "linear, 3 layers": replace(base, depth=3),
            "ReLU, 2 layers": replace(base, depth=2, relu=True),
            "ReLU, 3 layers": replace(base, depth=3, relu=True),
        }
        sets = {"CIFAR-10": "cifar10", "CIFAR-100": "cifar100"}
        return {
            f"{kind}, {title}": (replace(trial, data=replace(base.data, name=name)), {})
            for title, name in sets.items()
            for kind, trial in kinds.items()
        }
    few = ShufflingTrial(0, ImageVectors(train=512), batch_size=16, epochs=150)
    many = replace(few, data=ImageVectors(train=4096), epochs=40)
    return {
        "linear, 1 layer, 512 images, batches of 16": (
            replace(few, depth=1, epochs=200),
            {"single": figures(0.066, 0.69, 22), "reshuffle": figures(0.62, 0.29, 6)},
        ),
        "linear, 3 layers, 512 images, batches of 16": (
            replace(few, depth=3),
            {"single": figures(0.001, 0.81, 24.5), "reshuffle": figures(0.465, 0.685, 20)},
        ),
        "linear, 3 layers, 512 images, batches of 64": (
            replace(few, depth=3, batch_size=64, epochs=200),
            {"single": figures(0.006, 0.42, 14), "reshuffle": figures(0.39, 0.215, 5.5)},
        ),
        "ReLU, 3 layers, 512 images, batches of 16": (
            replace(few, depth=3, relu=True),
            {"single": figures(0.001, 0.05, 1), "reshuffle": figures(0.0025, 0.0, 0)},
        ),
        "ReLU, 3 layers, 512 images, batches of 4": (
            replace(few, depth=3, relu=True, batch_size=4, epochs=100, learning_rate=0.02),
            {"single": figures(0.001, 0.855, 29), "reshuffle": figures(0.705, 0.11, 2)},
        ),
        LINEAR_4096: (
            replace(many, depth=3),
            {"single": figures(0.57, 2.845, 66.5), "reshuffle": figures(1.6625, 1.635, 56.5)},
        ),
    }


LINEAR_4096 = "linear, 3 layers, 4,096 images, batches of 16"


RESIDUAL: dict[Scale, str] = {
    "smoke": "ResNet-8, width 8, 256 digits, batches of 8",
    "laptop": "ResNet-8, width 8, 512 images of CIFAR-10, 16 pixels, batches of 8",
    "paper": "ResNet-20 on CIFAR-10, batches of 128",
}


def residual_trial(scale: Scale, order: Literal["single", "reshuffle"]) -> TrainingTrial:
    """A residual network of version 1."""
    settings = TrainingSettings(
        epochs=100,
        batch_size=128,
        learning_rate=1e-3,
        schedule="constant",
        momentum=0.0,
        weight_decay=0.0,
        order=order,
    )
    if scale == "paper":
        return TrainingTrial(0, Network.of("resnet", depth=20), DataChoice("cifar10"), settings)
    data = (
        DataChoice("digits", train=256, test=200)
        if scale == "smoke"
        else DataChoice("cifar10", train=512, test=2000, size=16)
    )
    epochs = 5 if scale == "smoke" else 20
    settings = replace(settings, epochs=epochs, batch_size=8, learning_rate=0.05)
    return TrainingTrial(0, Network.of("resnet", depth=8, width=8), data, settings)
