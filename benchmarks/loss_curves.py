"""Writes the stored loss curves of ``tests/assets/``: three small runs, and how far rounding moves them.

A change that should not alter numbers leaves them as they are (`tests/lab/training/test_loss_curves.py`).
After one that should, run this and say in the commit what the evidence is that the new ones are right.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from varshift.trials import Workbench, decode, encode
from varshift_lab.data import Augmentation
from varshift_lab.training import DataChoice, Network, TrainingSettings, TrainingTrial, Treatment
from varshift_lab.training._run import Run

ASSETS = Path(__file__).parents[1] / "tests" / "assets"

# How many times the largest deviation that was measured here another machine may show, and the least that is
# asked of it: 100 units in the last place of a loss, for other versions of the kernels.
ROOM, LEAST = 10, 1e-5

# What makes oneDNN, MKL and torch do without the newer instructions of a processor.
PROCESSORS = {
    "AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "SSE4": {
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
    },
}

# Convolutions go without noise: where it falls depends on how the processor's library lays maps out. And no
# dropout: torch draws its masks by other means on processors of another make.
DATA = DataChoice("digits", train=320)
TRIALS = {
    "preresnet": TrainingTrial(
        seed=0,
        network=Network.of("preresnet", depth=8, block="basic", width=8),
        data=DATA,
        settings=TrainingSettings(
            3, 32, 0.05, warmup=0.2, weight_decay=5e-3, augmentation=Augmentation(pad=1, flip=0.5, cutout=2)
        ),
        measures=(),
    ),
    "densenet": TrainingTrial(
        seed=1,
        network=Network.of("densenet_bc", depth=10, growth=6),
        data=replace(DATA, label_noise=0.2),
        settings=TrainingSettings(
            3,
            32,
            0.002,
            schedule="cosine",
            optimizer="adamw",
            weight_decay=0.5,
            decay_norms=False,
            clip_norm=2.0,
        ),
        measures=(),
    ),
    "linear": TrainingTrial(
        seed=2,
        network=Network.of("linear_bn", depth=4, width=48, noise="uniform", dropout=0.5, placement="a"),
        data=DATA,
        settings=TrainingSettings(
            3,
            40,
            0.05,
            schedule="cycle",
            nesterov=False,
            order="single",
            label_smoothing=0.1,
            weight_decay=5e-3,
        ),
        measures=(),
    ),
}


@dataclass(frozen=True)
class Nudged(Treatment):
    """Moves every weight by up to one unit in its last place, as another order of summation would."""

    seed: int

    def prepare(self, model: nn.Module) -> None:
        """Moves them."""
        generator = torch.Generator().manual_seed(self.seed)
        with torch.no_grad():
            for parameter in model.parameters():
                sign = torch.randint(-1, 2, parameter.shape, generator=generator)
                parameter.mul_(1 + torch.finfo(parameter.dtype).eps * sign)


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Runs inside on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def losses(trial: TrainingTrial) -> list[float]:
    """The loss of each epoch."""
    return list(trial.run(Workbench())["train_loss_history"])  # type: ignore[arg-type]


def elsewhere(trial: TrainingTrial, environment: dict[str, str]) -> list[float]:
    """The losses on a processor that knows fewer instructions."""
    done = subprocess.run(
        [sys.executable, __file__, "--trial", json.dumps(encode(trial))],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def largest(found: list[float], expected: list[float]) -> float:
    """Largest relative deviation of any epoch's loss."""
    return max(abs(one - other) / other for one, other in zip(found, expected, strict=True))


def deviation(trial: TrainingTrial, expected: list[float]) -> float:
    """The same, of this trial."""
    return largest(losses(trial), expected)


def rounding(trial: TrainingTrial, expected: list[float]) -> dict[str, float]:
    """Deviations by what should change nothing but the rounding."""
    contexts: dict[str, Any] = {
        "two threads": threads(2),
        "channels outermost": patch.object(Run, "_channels_last", False),
    }
    found = {}
    for name, context in contexts.items():
        with context:
            found[name] = deviation(trial, expected)
    for name, environment in PROCESSORS.items():
        found[name] = largest(elsewhere(trial, environment), expected)
    for seed in range(3):
        found[f"weights nudged, {seed}"] = deviation(replace(trial, treatment=Nudged(seed)), expected)
    return found


def changes(trial: TrainingTrial, expected: list[float]) -> dict[str, float]:
    """Deviations by what is a change, if a small one."""
    settings = trial.settings
    changed: dict[str, dict[str, Any]] = {
        "weight decay times 1.2": {"weight_decay": 1.2 * settings.weight_decay},
        "rate times 1.01": {"learning_rate": 1.01 * settings.learning_rate},
        "momentum .89": {"momentum": 0.89},
        "norms' decay": {"decay_norms": not settings.decay_norms},
        "another seed": {},
    }
    found = {}
    for name, fields in changed.items():
        seed = trial.seed + (not fields)
        found[name] = deviation(replace(trial, seed=seed, settings=replace(settings, **fields)), expected)
    return found


def main() -> None:
    """Writes them all, or prints the losses of one trial."""
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["--trial"]:
        print(json.dumps(losses(decode(json.loads(sys.argv[2])))))
        return
    ASSETS.mkdir(exist_ok=True)
    for name, trial in TRIALS.items():
        expected = losses(trial)
        rounded, changed = rounding(trial, expected), changes(trial, expected)
        tolerance = float(f"{max(ROOM * max(rounded.values()), LEAST):.1e}")
        content = {
            "trial": encode(trial),
            "loss": expected,
            "tolerance": tolerance,
            "rounding": rounded,
            "changes": changed,
            "made with": {
                "torch": torch.__version__,
                "python": platform.python_version(),
                "machine": platform.machine(),
                "instructions": torch.backends.cpu.get_cpu_capability(),
            },
        }
        (ASSETS / f"curve-{name}.json").write_text(json.dumps(content, indent=2) + "\n")
        print(
            f"{name}: rounding {max(rounded.values()):.1e}, tolerance {tolerance:.1e}, changes "
            + ", ".join(f"{what} {value:.1e}" for what, value in changed.items())
        )


if __name__ == "__main__":
    main()
