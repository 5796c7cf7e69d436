"""One training of one variant with one seed."""

from __future__ import annotations

import functools
import inspect
import pickle
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from varshift._errors import VarshiftWarning
from varshift.comparison._loop import train_loop
from varshift.comparison._outcome import measure_outcome
from varshift.comparison._setup import Setup
from varshift.comparison._stream import Stream, epoch_seed, streamed
from varshift.comparison._window import NoiseWindow
from varshift.model import seed_all, seed_held
from varshift.probe import recalibrate
from varshift.trials import Measurements, Trial, TrialError, Workbench


@dataclass(frozen=True)
class ComparisonTrial(Trial):
    """Trains one variant and measures what became of it.

    Attributes:
        comparison: Name of the network, the data and the training, by their content.
        variant: Name of the variant.
        definition: Name of the variant by its content.
    """

    comparison: str
    variant: str
    definition: str

    @property
    def title(self) -> str:
        """The variant and the seed."""
        return f"{self.variant}, seed {self.seed}"

    def run(self, workbench: Workbench) -> Measurements:
        """Trains and measures, see `Trial.run`."""
        setup = workbench.materials
        if isinstance(setup, bytes):
            setup = _unpacked(setup)
        if not isinstance(setup, Setup) or setup.identity != self.comparison:
            raise TrialError("it belongs to another comparison: call compare() as it was called then.")
        torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1)  # the first one imports a lot
        start = time.monotonic()
        network = setup.network(self.variant, self.seed).to(workbench.device)
        variant = setup.variants[self.variant]
        window = None if variant.whole else NoiseWindow(network, variant.noise)
        seed_all(self.seed)

        def tick(epochs: float) -> None:
            if window is not None:
                window.at(epochs / max(setup.loop.epochs, 1))

        stream = Stream(
            setup.loader, self.seed, lambda epoch: seed_held(network, epoch_seed(self.seed, epoch)), tick
        )
        try:
            measured, before = self._train(network, setup, stream, workbench)
        finally:
            if window is not None:
                window.close()
        if isinstance(measured, nn.Module):
            network, measured = measured, None
        if variant.recalibrate:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", VarshiftWarning)  # whether it helps is what is measured
                recalibrate(network, Stream(setup.loader, self.seed), forward=setup.forward, loss=setup.loss)
        outcome = measure_outcome(
            network,
            setup.loader,
            setup.judged,
            seed=self.seed,
            device=workbench.device,
            forward=setup.forward,
            loss=setup.loss,
        )
        return {**outcome, "seconds": before + time.monotonic() - start, **(measured or {})}

    def _train(
        self, network: nn.Module, setup: Setup, stream: Stream, workbench: Workbench
    ) -> tuple[nn.Module | Mapping[str, float] | None, float]:
        """Trains; what the user's training returned, and the seconds of earlier attempts."""
        if setup.train is None:
            before = train_loop(
                network,
                stream,
                setup.loop,
                device=workbench.device,
                forward=setup.forward,
                loss=setup.loss,
                folder=workbench.folder,
                record=workbench.record,
            )
            return None, before
        options: dict[str, Any] = {"seed": self.seed, "folder": workbench.folder, "device": workbench.device}
        if setup.loop.epochs:
            options["epochs"] = setup.loop.epochs
        result = setup.train(network, streamed(setup.loader, stream), **wanted(setup.train, options))
        if result is None or isinstance(result, (nn.Module, Mapping)):
            return result, 0.0
        if isinstance(result, (list, tuple, torch.Tensor)):  # such as a record of losses
            return None, 0.0
        raise TrialError(
            f"train= returned a {type(result).__name__}: it must return nothing, the trained network, or a "
            "mapping of names to numbers."
        )


@functools.lru_cache(maxsize=1)
def _unpacked(materials: bytes) -> Setup:
    """What a worker was sent by the process that started it; nothing of it was read from a store."""
    return pickle.loads(materials)


def wanted(function: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of some keyword arguments that a function names."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return {}
    return {name: value for name, value in options.items() if name in parameters}
