"""Independent components: orders, the control, shifts of untrained networks, and conditions of inputs."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from varshift.trials import Workbench
from varshift_lab.data import Images, digit_images
from varshift_lab.networks import ic_resnet
from varshift_lab.recipes import _independent_component as ic
from varshift_lab.recipes._conditioning import conditioning
from varshift_lab.training import DataChoice, Network, TrainingSettings

SETTINGS = TrainingSettings(epochs=1, batch_size=50, learning_rate=0.1)


def trial_of(scale, order):
    _, data, subject = next(iter(ic._cells(scale)))
    return ic.trials(scale, order, subject, data)[0]


def test_the_control_is_the_recommended_order_without_its_dropout():
    with_noise, without = (
        trial_of("laptop", order).network.build(digit_images()) for order in (ic.A, ic.CONTROL)
    )
    assert any(isinstance(module, nn.Dropout) for module in with_noise.modules())
    assert not any(isinstance(module, nn.Dropout) for module in without.modules())
    assert list(with_noise.state_dict()) == list(without.state_dict())


@pytest.mark.parametrize("order", ic.ORDERS, ids=lambda order: " ".join(order.label))
def test_paper_networks_have_the_counts_of_their_depth(order):
    for _, data, subject in ic._cells("paper"):
        trial = ic.trials("paper", order, subject, data)[0]
        with torch.device("meta"):
            network = trial.network._builder()(**dict(trial.network.arguments))
        weights = [module for module in network.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
        shortcuts = sum(name.endswith("shortcut") for name, _ in network.named_modules())
        assert len(weights) - shortcuts == dict(subject.arguments)["depth"]


def test_a_trial_runs():
    trial = trial_of("smoke", ic.A)
    small = replace(trial.settings, epochs=1)
    found = replace(trial, data=DataChoice("digits", train=64, test=50), settings=small).run(Workbench())
    wanted = {"test_error", "adjusted_test_error", "train_loss_mean", "shift_mean", "condition"}
    assert wanted <= set(found)


def initial(rate, seed=0, **arguments):
    network = Network.of("ic_resnet", depth=20, width=8, dropout=rate, placement="ic", **arguments)
    return ic.InitialShift(seed, network, DataChoice("digits", test=128)).run(Workbench())


def test_untrained_networks_shift_as_theory_has_it():
    """A dropout of 0.05 adds at least 1 / 0.95 to every variance behind it, and the shifts compound."""
    found = initial(0.05)
    assert 1.03 < found["local_mean"] < 1.12
    assert found["local_layers"][0] == pytest.approx(1, abs=1e-5)  # no noise in front of the first norm
    assert found["deployed_mean"] > found["local_mean"]
    assert found["deployed_max"] == max(found["deployed_layers"])
    assert initial(0.05) == found


def test_without_noise_nothing_is_shifted():
    network = Network.of("ic_resnet", depth=8, width=8, placement="none")
    found = ic.InitialShift(0, network, DataChoice("digits", test=128)).run(Workbench())
    assert found["local_max"] == pytest.approx(1, abs=1e-4)
    # Statistics of batches of 64 in training, of all in evaluation.
    assert found["deployed_mean"] == pytest.approx(1, abs=0.05)


# Conditions of inputs


class Two(nn.Module):
    """Hands known features to its second layer."""

    def __init__(self, mixing):
        super().__init__()
        self.first = nn.Linear(4, mixing.shape[0], bias=False)
        self.second = nn.Linear(mixing.shape[0], 2)
        with torch.no_grad():
            self.first.weight.copy_(mixing)

    def forward(self, x):
        return self.second(self.first(x.flatten(1)))


def images_of(samples=300):
    pixels = torch.randint(0, 256, (samples, 1, 2, 2), generator=torch.Generator().manual_seed(0))
    return Images(pixels.to(torch.uint8), torch.arange(samples) % 2)


def measured(mixing):
    return conditioning(Two(mixing), images_of(), images_of(), Workbench(), SETTINGS)


def test_conditions_are_those_of_the_second_moments():
    mixing = torch.tensor([[1.0, 0, 0, 0], [1, 0.2, 0, 0], [0, 0, 5, 1]])
    rows = (images_of().normalised().flatten(1) @ mixing.T).double().numpy()
    ones = np.ones((len(rows), 1))
    variance = rows.var(0)
    scaled = (rows - rows.mean(0)) / np.sqrt(variance + 1e-2 * variance.max() + 1e-4)
    found = measured(mixing)
    assert found["condition"] == pytest.approx(np.linalg.cond(rows) ** 2, rel=1e-4)
    assert found["condition_bias"] == pytest.approx(np.linalg.cond(np.hstack([ones, rows])), rel=1e-4)
    preconditioned = np.linalg.cond(np.hstack([ones, scaled]))
    assert found["condition_preconditioned"] == pytest.approx(preconditioned, rel=1e-4)
    assert found["condition_layers"] == pytest.approx([found["condition"]])


def test_dead_features_do_not_count():
    alive = torch.tensor([[1.0, 0, 0, 0], [0, 2, 0, 0]])
    with_dead = torch.cat((alive, torch.zeros(1, 4)))
    assert measured(with_dead)["condition"] == pytest.approx(measured(alive)["condition"])


def test_conditions_leave_the_network_as_it_is():
    network = ic_resnet(8, in_channels=1, width=4)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    conditioning(network, digit_images(), digit_images(), Workbench(), SETTINGS)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert network.training
    assert not any(module._forward_pre_hooks for module in network.modules())
