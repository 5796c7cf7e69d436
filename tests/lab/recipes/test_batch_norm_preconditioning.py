"""Batch norm preconditioning: the treatment, exact resume, and the trials."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from varshift.optim import BatchNormPreconditioner
from varshift.trials import Workbench
from varshift_lab.networks import preresnet
from varshift_lab.recipes import _batch_norm_preconditioning as bnp
from varshift_lab.training import DataChoice, TrainingSettings


def test_every_layer_gets_a_bias_of_zero():
    network = preresnet(8, width=4, norm="group")
    bnp.Biases().prepare(network)
    layers = [module for module in network.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    assert all(layer.bias is not None for layer in layers)
    assert not any(layer.bias.any() for layer in layers if isinstance(layer, nn.Conv2d))


def test_the_treatment_preconditions_the_optimisers_steps():
    x, y = torch.randn(16, 5, generator=torch.Generator().manual_seed(0)) + 3, torch.arange(16) % 3
    settings = TrainingSettings(epochs=1, batch_size=16, learning_rate=0.1, momentum=0.0, weight_decay=0.0)
    torch.manual_seed(0)
    treated = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    by_hand = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    by_hand.load_state_dict(treated.state_dict())
    optimizers = [settings.make_optimizer(network) for network in (treated, by_hand)]
    (part,) = bnp.Preconditioning().attach(treated, optimizers[0], settings)
    own = BatchNormPreconditioner(by_hand)
    for network, optimizer in zip((treated, by_hand), optimizers, strict=True):
        nn.functional.cross_entropy(network(x), y).backward()
        if network is by_hand:
            own.step()
        optimizer.step()
    for one, other in zip(treated.parameters(), by_hand.parameters(), strict=True):
        assert torch.equal(one, other)
    assert set(part.state_dict()["layers"]) == {"0", "2"}


class StoppedError(Exception):
    """An interruption."""


def test_an_interrupted_training_goes_on_to_the_same_weights(tmp_path):
    trial = bnp.dense_trials("smoke", "bnp", 6)[0]
    trial = replace(
        trial,
        data=DataChoice("digits", train=60, test=50),
        settings=replace(trial.settings, epochs=3),
        measures=("errors",),
    )
    whole = trial.run(Workbench())
    events = []

    def stop(event):
        events.append(event)
        if len(events) == 2:
            raise StoppedError

    with pytest.raises(StoppedError):
        trial.run(Workbench(folder=tmp_path, record=stop))
    again = trial.run(Workbench(folder=tmp_path))
    for name in ("test_loss", "train_loss_history", "train_loss_eval"):
        assert again[name] == whole[name]


@pytest.mark.parametrize(("method", "batch"), [("plain", 1), ("batch", 6), ("bnp", 60)])
def test_fully_connected_trials_run(method, batch):
    trial = bnp.dense_trials("smoke", method, batch)[0]
    small = replace(trial.settings, epochs=1)
    found = replace(trial, data=DataChoice("digits", train=60, test=50), settings=small).run(Workbench())
    assert {"test_error", "condition_bias", "condition_preconditioned", "train_loss_mean"} <= set(found)


@pytest.mark.parametrize("kind", list(bnp.DEEP))
def test_residual_trials_run(kind):
    trial = bnp.deep_trials("smoke", kind)[0]
    small = replace(trial.settings, epochs=1)
    found = replace(trial, data=DataChoice("digits", train=64, test=50), settings=small).run(Workbench())
    assert 0 <= found["test_error"] <= 100


def test_paper_scale_has_the_known_depth():
    trial = bnp.deep_trials("paper", "bnp")[0]
    with torch.device("meta"):
        network = trial.network._builder()(**dict(trial.network.arguments))
        trial.treatment.prepare(network)
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    shortcuts = 2
    assert len(convolutions) - shortcuts + 1 == 110
    assert sum(isinstance(module, nn.GroupNorm) for module in network.modules()) == 109


def test_batch_norm_is_not_asked_to_train_on_one_sample():
    for scale in ("smoke", "laptop", "paper"):
        for trial in bnp.RECIPE.trials(scale):
            norm = dict(trial.network.arguments)["norm"]
            assert norm != "batch" or trial.settings.batch_size > 1
