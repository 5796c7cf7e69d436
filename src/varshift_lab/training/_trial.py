"""The trial that trains a network and measures what became of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from varshift.trials import Measurements, Trial, TrialError, Workbench
from varshift_lab.training._data_choice import DataChoice
from varshift_lab.training._fit import fit
from varshift_lab.training._measures import find_measure, stored_name
from varshift_lab.training._network import Network
from varshift_lab.training._random import own_random_state
from varshift_lab.training._settings import TrainingSettings
from varshift_lab.training._treatment import Treatment


@dataclass(frozen=True)
class TrainingTrial(Trial):
    """Trains one network and measures it.

    Attributes:
        seed: Seed of weights, order, augmentation and masks.
        network: Which network.
        data: On which data.
        settings: How.
        measures: What is measured in the end, by the names that `measure` registered: ``"errors"``,
            ``"adjusted"``, ``"shift"``, ``"geometry"``, or a recipe's own. What happened during training
            (`History.measurements`) is there always.
        treatment: What a paper adds to training.

    Raises:
        ValueError: If a measure is unknown.
    """

    network: Network
    data: DataChoice
    settings: TrainingSettings
    measures: tuple[str, ...] = ("errors",)
    treatment: Treatment | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "measures", tuple(stored_name(name) for name in self.measures))

    @property
    def title(self) -> str:
        """Network, data and seed."""
        arguments = ", ".join(f"{name}={value}" for name, value in self.network.arguments)
        return f"{self.network.family}({arguments}) on {self.data.name}, seed {self.seed}"

    def run(self, workbench: Workbench) -> Measurements:
        """Trains, from the latest checkpoint in the workbench's folder if there is one, and measures.

        Raises:
            TrialError: If training diverged, a measurement is not finite, or a checkpoint cannot be written.
        """
        train, test = self.data.load(workbench)
        with own_random_state(workbench.device):
            torch.manual_seed(self.seed)
            network = self.network.build(train)
        history = fit(
            network, train, self.settings, seed=self.seed, treatment=self.treatment, workbench=workbench
        )
        device = torch.device(workbench.device)
        train, test = train.to(device), test.to(device)
        found: dict[str, Any] = dict(history.measurements())
        for name in self.measures:
            found.update(find_measure(name)(network, train, test, workbench, self.settings))
        for name, value in found.items():
            if not all(math.isfinite(number) for number in _numbers(value)):
                raise TrialError(
                    f"{name} is not finite after {self.settings.epochs} epochs: training diverged in its "
                    f"last steps. Use a learning rate below {self.settings.learning_rate:g}, or clip_norm."
                )
        return found


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, (list, tuple)):
        for one in value:
            yield from _numbers(one)
    else:
        yield value
