"""One process of data-parallel trainings, started by torchrun: folder."""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from varshift.data import ActiveBias
from varshift.trials import TrialError, Workbench
from varshift_lab.data import digit_images, subset
from varshift_lab.training import TrainingSettings, Treatment, fit

torch.set_num_threads(1)
SEEN: list[list[int]] = []


@dataclass(frozen=True)
class Biased(Treatment):
    active: bool

    def remember(self, images, settings):
        return ActiveBias(len(images), burn_in=1) if self.active else None

    def loss(self, outputs, labels, ids, state):
        SEEN.append(ids.tolist())
        if state is None:
            return None
        weights = state(ids, outputs.detach(), labels)
        return (weights * F.cross_entropy(outputs, labels, reduction="none")).mean()


SETTINGS = {
    "plain": TrainingSettings(3, 16, 0.1, probe_every=3, probe_samples=48),
    "noisy": TrainingSettings(3, 16, 0.1, probe_every=3, probe_samples=48),
    "diverged": TrainingSettings(3, 16, 1e30),
}


def network(scenario):
    rate, norm = (0.5, True) if scenario == "noisy" else (0.0, False)
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.Dropout(rate),
        nn.BatchNorm2d(4) if norm else nn.Identity(),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 10),
    )


def main(folder):
    rank = int(os.environ["RANK"])
    images = subset(digit_images(), 96)
    for scenario in ("plain", "noisy", "diverged"):
        made, twin = network(scenario), network(scenario)
        events, error, history = [], "", None
        bench = Workbench(folder=folder / scenario, record=events.append)
        treatment = Biased(scenario == "noisy")
        SEEN.clear()
        try:
            history = fit(made, images, SETTINGS[scenario], treatment=treatment, workbench=bench)
        except TrialError as found:
            error = str(found)
        seen, told = [list(ids) for ids in SEEN], list(events)
        if history is not None:  # and once more, from the checkpoint before the last
            torch.distributed.barrier()
            (folder / scenario / "epoch-00003.pt").unlink(missing_ok=True)
            torch.distributed.barrier()
            fit(twin, images, SETTINGS[scenario], treatment=treatment, workbench=bench)
        result = {
            "seen": seen,
            "loss": history.loss if history else [],
            "shift": [probe.shift for probe in history.probes] if history else [],
            "events": [event["event"] for event in told],
            "error": error,
            "resumed alike": all(map(torch.equal, made.state_dict().values(), twin.state_dict().values())),
        }
        torch.save(made.state_dict(), folder / f"{scenario}{rank}.pt")
        (folder / f"{scenario}{rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
