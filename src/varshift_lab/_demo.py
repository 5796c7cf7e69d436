"""The demo: a sick network and its healthy twin, trained on real digits, checked, cured and checked again."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

import varshift
from varshift_lab._trainer import TrainingSettings, train
from varshift_lab.data import Digits, digits, tensor_loader
from varshift_lab.networks import Placement, preresnet
from varshift_lab.training import Evaluation, evaluate

if TYPE_CHECKING:
    from varshift import Cured, Report

TARGET = "varshift_lab.networks:preresnet"

Progress = Callable[[str, int, "int | None"], None]


@dataclass(frozen=True, slots=True)
class DemoSettings:
    """What is trained, and how.

    How these were chosen: basic blocks at depths 20 to 146 and widths 4 to 16, bottlenecks at 56 and 110,
    learning rates 0.02 to 1, weight decays 0 to 0.01, 4 to 20 epochs, one-cycle and step schedules, mostly
    with three to five seeds each. Dropout-(a) shifts the variance in all of them; what that costs differs. Up
    to 56 layers, and wherever the digits are learned to nearly 100 %, some seeds lose nothing that stands
    out from chance. With 110 layers trained briefly every seed of 0 to 4 loses accuracy and loss well beyond
    chance, on held-out digits too. A weight decay of 0.005 lets whole channels of the healthy twin die out,
    which is a fault of its own; 0.002 does not.

    Attributes:
        depth: Layers of the network, ``6 n + 2``.
        width: Channels of its first stage.
        dropout: DROP probability in both networks.
        epochs: Passes over the training digits.
        learning_rate: Largest learning rate.
        weight_decay: Weight decay.
        batch_size: Samples per batch.
        seed: Seed of weights, masks and order.
    """

    depth: int = 110
    width: int = 8
    dropout: float = 0.5
    epochs: int = 5
    learning_rate: float = 1.0
    weight_decay: float = 2e-3
    batch_size: int = 64
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one network.

    Attributes:
        report: The check.
        training: It in ``eval()`` on the training digits.
        held_out: It in ``eval()`` on the held-out digits.
    """

    report: Report
    training: Evaluation
    held_out: Evaluation


class Demo:
    """One run of the demo, step by step; each step can be shown before the next is taken.

    Args:
        settings: See `DemoSettings`.

    Raises:
        ValueError: If a setting is out of range.
    """

    def __init__(self, settings: DemoSettings) -> None:
        self.settings = settings
        self.data: Digits = digits()
        self.sick = self._build("a")
        self.healthy = self._build("before_pooling")

    def _build(self, placement: Placement) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.seed)
            return preresnet(
                self.settings.depth,
                10,
                block="basic",
                dropout=self.settings.dropout,
                placement=placement,
                in_channels=1,
                width=self.settings.width,
            )

    def loader(self) -> Any:
        """The training digits as they are trained on: shuffled, without the short last batch."""
        return tensor_loader(
            self.data.train_images,
            self.data.train_labels,
            self.settings.batch_size,
            shuffle=True,
            drop_last=True,
            seed=self.settings.seed,
        )

    def train(self, network: nn.Module, stage: str, progress: Progress | None) -> float:
        """Trains one network and returns the seconds it took."""
        settings = TrainingSettings(
            epochs=self.settings.epochs,
            learning_rate=self.settings.learning_rate,
            weight_decay=self.settings.weight_decay,
            seed=self.settings.seed,
        )
        start = time.perf_counter()
        follow = None if progress is None else lambda done, total: progress(stage, done, total)
        train(network, self.loader(), settings, follow)
        return time.perf_counter() - start

    def check(self, network: nn.Module, progress: Progress | None) -> Report:
        """Runs `varshift.check` on the training digits."""
        loader = self.loader()
        return varshift.check(
            network,
            loader,
            max_batches=len(loader),
            seed=self.settings.seed,
            target=TARGET,
            progress=progress,
        )

    def outcome(self, network: nn.Module, report: Report) -> Outcome:
        """Evaluates a network on the training and the held-out digits.

        Args:
            network: The network.
            report: The check of it.
        """
        data, size = self.data, 4 * self.settings.batch_size
        return Outcome(
            report=report,
            training=evaluate(network, tensor_loader(data.train_images, data.train_labels, size)),
            held_out=evaluate(network, tensor_loader(data.test_images, data.test_labels, size)),
        )

    def fix(self, network: nn.Module, report: Report, progress: Progress | None) -> tuple[Cured, float]:
        """Runs `varshift.fix` on what a check found; returns the cured copy and the seconds."""
        start = time.perf_counter()
        loader = self.loader()
        cured = varshift.fix(
            network,
            report,
            loader=loader,
            max_batches=len(loader),
            seed=self.settings.seed,
            progress=progress,
        )
        return cured, time.perf_counter() - start
