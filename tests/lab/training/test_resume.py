"""A run that was interrupted ends with the same weights as one that was not."""

import random
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from varshift.data import ActiveBias, ActiveBiasSampler
from varshift.optim import BatchNormPreconditioner, WeightRescaling
from varshift.trials import TrialError, Workbench
from varshift_lab.data import Augmentation
from varshift_lab.training import Treatment, fit

WORKERS = Path(__file__).parent / "workers"


class InterruptionError(Exception):
    pass


@dataclass(frozen=True)
class Everything(Treatment):
    """All kinds of state that a treatment may have."""

    draws: bool = False

    def attach(self, model, optimizer, settings):
        rescaling = WeightRescaling([(model[0], model[2])], interval=5)
        rescaling.attach(optimizer)
        preconditioner = BatchNormPreconditioner(model)
        preconditioner.attach(optimizer)
        return [rescaling, preconditioner]

    def remember(self, images, settings):
        return ActiveBias(len(images), burn_in=1)

    def sampler(self, images, settings, seed, state):
        return ActiveBiasSampler(state, seed=seed) if self.draws else None

    def loss(self, outputs, labels, ids, state):
        weights = state(ids, outputs.detach(), labels)
        return (weights * F.cross_entropy(outputs, labels, reduction="none")).mean()


def interrupted(build, images, settings, folder, steps, treatment=None):
    """Trains until it is through, while the given steps raise, and returns network and history."""
    ahead = list(steps)
    while True:
        network = build()
        done = [0]

        def stop(module, inputs, done=done, ahead=ahead):
            if module.training and torch.is_grad_enabled():
                done[0] += 1
                if ahead and done[0] == ahead[0]:
                    ahead.pop(0)
                    raise InterruptionError

        # counts from the attempt's own start; the first call counts what a step costs
        network.register_forward_pre_hook(stop)
        try:
            return network, fit(
                network, images, settings, treatment=treatment, workbench=Workbench(folder=folder)
            )
        except InterruptionError:
            continue


@pytest.mark.parametrize(
    ("changes", "treatment"),
    [
        ({"augmentation": Augmentation(1, flip=0.5), "probe_every": 2, "probe_samples": 32}, None),
        ({"optimizer": "adamw", "learning_rate": 0.01, "schedule": "cosine"}, None),
        ({"order": "single", "schedule": "cycle", "clip_norm": 0.5}, None),
        ({}, Everything()),
        ({}, Everything(draws=True)),
    ],
    ids=["augmented", "adamw", "single", "treated", "drawn"],
)
def test_interrupted_at_any_step_it_ends_with_the_same_weights(
    build, images, settings, tmp_path, same, changes, treatment
):
    settings = replace(settings, **changes)
    whole = build()
    history = fit(whole, images, settings, treatment=treatment)
    numbers = random.Random(str(changes))
    steps = [numbers.randrange(3, 14) for _ in range(4)]
    network, resumed = interrupted(build, images, settings, tmp_path, steps, treatment)
    assert same(network, whole)
    assert resumed.loss == history.loss
    assert resumed.error == history.error
    assert resumed.probes == history.probes
    assert resumed.measurements()["pflop"] == history.measurements()["pflop"]


def test_a_finished_run_is_not_trained_again(build, images, settings, tmp_path, same):
    first, again, events = build(), build(seed=9), []
    history = fit(first, images, settings, workbench=Workbench(folder=tmp_path))
    found = fit(again, images, settings, workbench=Workbench(folder=tmp_path, record=events.append))
    assert same(first, again)
    assert found == history
    assert events == []


def worker_run(folder, halt, kill):
    process = subprocess.Popen(
        [sys.executable, str(WORKERS / "train_and_wait.py"), str(folder), str(halt)],
        stdout=subprocess.PIPE,
        text=True,
    )
    if kill:
        assert process.stdout.readline() == "here\n"
        process.send_signal(signal.SIGKILL)
    process.communicate(timeout=300)
    assert process.returncode == (-signal.SIGKILL if kill else 0)


def test_killed_in_the_middle_of_an_epoch_it_goes_on(tmp_path):
    sys.path.insert(0, str(WORKERS))
    try:
        from train_and_wait import TRIAL
    finally:
        sys.path.remove(str(WORKERS))
    expected = dict(TRIAL.run(Workbench(folder=tmp_path / "whole")))
    worker_run(tmp_path / "killed", halt=21, kill=True)
    assert [path.name for path in sorted((tmp_path / "killed").iterdir())] == [
        "epoch-00001.pt",
        "epoch-00002.pt",
    ]
    worker_run(tmp_path / "killed", halt=-1, kill=False)
    found = torch.load(tmp_path / "killed" / "out", weights_only=True)
    del expected["seconds"]
    assert found == expected
    states = [
        torch.load(tmp_path / name / "epoch-00006.pt", weights_only=True)["state"]
        for name in ("whole", "killed")
    ]
    for name, value in states[0]["network"].items():
        assert torch.equal(value, states[1]["network"][name]), name


def test_another_run_in_the_folder_is_refused(build, images, settings, tmp_path):
    bench = Workbench(folder=tmp_path)
    fit(build(), images, replace(settings, epochs=1), workbench=bench)
    for changes, seed in (({"learning_rate": 0.2}, 0), ({}, 1)):
        with pytest.raises(TrialError, match=r"epoch-00001.pt is a checkpoint of another run"):
            fit(build(), images, replace(settings, epochs=1, **changes), seed=seed, workbench=bench)


def test_networks_of_other_shapes_are_other_runs(images, settings, tmp_path):
    bench = Workbench(folder=tmp_path)
    fit(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), images, settings, workbench=bench)
    with pytest.raises(TrialError, match="another run"):
        fit(nn.Sequential(nn.Flatten(), nn.Linear(64, 11)), images, settings, workbench=bench)
