"""The plain training loop."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from varshift import VarshiftError
from varshift_lab._trainer import TrainingSettings, step_schedule, train
from varshift_lab.data import tensor_loader
from varshift_lab.training import evaluate


@pytest.fixture
def loader():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(96, 4, generator=generator)
    labels = (images[:, 0] + images[:, 1] > 0).long()
    return tensor_loader(images, labels, 32, shuffle=True)


def build(rate: float = 0.5) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 16), nn.Dropout(rate), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))


def test_training_learns_and_reports_each_epoch_and_step(loader):
    network, steps = build(), []
    records = train(
        network, loader, TrainingSettings(epochs=8, learning_rate=0.2), lambda *at: steps.append(at)
    )
    assert len(records) == 8
    assert records[-1].loss < 0.6 * records[0].loss
    assert records[-1].accuracy > 0.8
    assert steps == [(step, 24) for step in range(1, 25)]
    assert network.training
    assert evaluate(network, loader).accuracy > 0.85


def test_training_is_repeatable_and_leaves_the_random_state_alone(loader):
    settings = TrainingSettings(epochs=2, learning_rate=0.1, weight_decay=1e-3, seed=5)
    runs = []
    for _ in range(2):
        network = build()
        loader.generator.manual_seed(3)
        torch.manual_seed(len(runs))
        before = torch.random.get_rng_state()
        train(network, loader, settings)
        assert torch.equal(torch.random.get_rng_state(), before)
        runs.append(network.state_dict())
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    loader.generator.manual_seed(3)
    other = build()
    train(other, loader, TrainingSettings(epochs=2, learning_rate=0.1, weight_decay=1e-3, seed=6))
    assert not torch.equal(other[0].weight, runs[0]["0.weight"])


def test_the_learning_rate_rises_and_falls_in_steps():
    shares = (0, 0.05, 0.1, 0.49, 0.5, 0.69, 0.7, 0.85, 1)
    factors = (0, 0.5, 1, 1, 0.1, 0.1, 0.01, 0.001, 0.001)
    assert [step_schedule(share) for share in shares] == pytest.approx(factors)


def test_divergence_is_reported_with_its_epoch(loader):
    images = torch.full((64, 4), float("inf"))
    broken = tensor_loader(images, torch.zeros(64, dtype=torch.int64), 32)
    with pytest.raises(VarshiftError, match=r"diverged in epoch 1: .* learning rate below 0.3"):
        train(build(), broken, TrainingSettings(epochs=3, learning_rate=0.3))


def test_a_loader_without_a_length_is_refused():
    with pytest.raises(TypeError, match="loader is a generator without a length"):
        train(build(), (batch for batch in ()), TrainingSettings(epochs=1, learning_rate=0.1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0, "learning_rate": 0.1}, "epochs=0 must be at least 1"),
        ({"epochs": 1, "learning_rate": 0.0}, "learning_rate=0.0 must be above 0"),
        ({"epochs": 1, "learning_rate": float("nan")}, "learning_rate=nan must be above 0"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainingSettings(**settings)
