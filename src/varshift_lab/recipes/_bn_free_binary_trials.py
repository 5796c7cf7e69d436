"""The trials of the BN-free binary networks: training in two steps, and the signal before any."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from varshift.optim import AdaptiveGradientClipping
from varshift.trials import Measurements, Trial, TrialError, Workbench
from varshift_lab.networks import reactnet
from varshift_lab.training import (
    DataChoice,
    Network,
    Part,
    TrainingSettings,
    Treatment,
    find_measure,
    fit,
)


@dataclass(frozen=True)
class BinaryTreatment(Treatment):
    """What the released code does besides Adam.

    Weights of the classifier do not decay, and gradients are clipped unit by unit to a share of the weights'
    norm, but for the classifier's.

    Attributes:
        clip_factor: That share; None does not clip.
    """

    clip_factor: float | None = 0.02

    def attach(self, model: nn.Module, optimizer: Optimizer, settings: TrainingSettings) -> Sequence[Part]:
        """Takes the classifier out of the decay, and clips before each step."""
        linear = [m.weight for m in model.modules() if isinstance(m, nn.Linear)]
        kept = {id(weight) for weight in linear}
        for group in optimizer.param_groups:
            group["params"] = [one for one in group["params"] if id(one) not in kept]
        optimizer.add_param_group({"params": linear, "weight_decay": 0.0})
        if self.clip_factor is not None:
            AdaptiveGradientClipping(model, self.clip_factor).attach(optimizer)
        return ()


@dataclass(frozen=True)
class TwoStepTrial(Trial):
    """Trains a network with binary activations, and from its weights one whose weights are binary, too.

    Attributes:
        network: The binary network.
        data: On which data.
        first: Training of the first step; None begins with the second.
        second: Training of the second step.
        treatment: What both steps share.
    """

    network: Network
    data: DataChoice
    first: TrainingSettings | None
    second: TrainingSettings
    treatment: BinaryTreatment

    @property
    def title(self) -> str:
        """Network and data."""
        arguments = ", ".join(f"{name}={value}" for name, value in self.network.arguments)
        return f"{self.network.family}({arguments}) on {self.data.name}, seed {self.seed}"

    def run(self, workbench: Workbench) -> Measurements:
        """Both steps, each in a folder of its own; measurements are those of the binary network.

        ``first_test_error`` is that of the first step's network. PFLOP and seconds are of both.
        """
        train, test = self.data.load(workbench)
        model = self._build(train, binary_weights=self.first is None)
        found: dict[str, Any] = {}
        work = {"seconds": 0.0, "pflop": 0.0}
        for step, settings in enumerate((self.first, self.second), 1):
            if settings is None:
                continue
            if step == 2 and self.first is not None:
                weights = model.state_dict()
                model = self._build(train, binary_weights=True)
                model.load_state_dict(weights, strict=False)
            folder = None if workbench.folder is None else workbench.folder / f"step{step}"
            bench = replace(workbench, folder=folder)
            history = fit(model, train, settings, seed=self.seed, treatment=self.treatment, workbench=bench)
            device = torch.device(workbench.device)
            errors = find_measure("errors")(model, train.to(device), test.to(device), bench, settings)
            prefix = "first_" if step == 1 else ""
            found |= {f"{prefix}{name}": value for name, value in errors.items()}
            for name, value in history.measurements().items():
                if name in work and isinstance(value, float):
                    work[name] += value
                else:
                    found[f"{prefix}{name}"] = value
        if not math.isfinite(found["test_loss"]):
            raise TrialError("test_loss is not finite: training diverged in its last steps.")
        return {**found, **work}

    def _build(self, images: Any, *, binary_weights: bool) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            arguments = {**dict(self.network.arguments), "binary_weights": binary_weights}
            return Network.of(self.network.family, **arguments).build(images)


@dataclass(frozen=True)
class SignalTrial(Trial):
    """Moments of a ReActNet-A at the start, on Gaussian inputs, after the stem and after each block.

    Attributes:
        norm: ``"free"``, ``"batch"`` or ``"none"``.
        size: Pixels of the inputs' sides.
        samples: Inputs in the batch.
        width: Channels of the stem.
    """

    norm: str
    size: int = 224
    samples: int = 4
    width: int = 32

    def run(self, workbench: Workbench) -> Measurements:
        """Means over channels of squared channel mean, channel variance and their sum; in training mode."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = reactnet(norm=self.norm, width=self.width)  # type: ignore[arg-type]
            inputs = torch.randn(self.samples, 3, self.size, self.size)
        model, inputs = model.to(workbench.device), inputs.to(workbench.device)
        moments: list[tuple[float, float]] = []

        def keep(_module: nn.Module, signal: Any, output: Any = None) -> None:
            x: Tensor = (signal if output is None else output)[0]
            means, variances = x.double().mean((0, 2, 3)), x.double().var((0, 2, 3), correction=0)
            moments.append((float(means.square().mean()), float(variances.mean())))

        blocks = list(model.get_submodule("stages.0").children())
        blocks[0].register_forward_pre_hook(keep)
        # A block is one module where it is free of norms, and otherwise two, of one convolution each.
        for block in blocks if self.norm == "free" else blocks[1::2]:
            block.register_forward_hook(keep)
        with torch.no_grad():
            model.train()(inputs)
        return {
            "squared_mean": [mean for mean, _ in moments],
            "variance": [variance for _, variance in moments],
            "second_moment": [mean + variance for mean, variance in moments],
            "last_squared_mean": moments[-1][0],
            "last_variance": moments[-1][1],
        }
