"""The recipe on starts of weights corrected for dropout, and on norms estimated anew."""

import copy
import math

import pytest
import torch
from torch import nn

from varshift.trials import Workbench
from varshift_lab.data import EpochLoader, digit_images, subset
from varshift_lab.networks import densenet, vgg
from varshift_lab.recipes._dropout_variance_parts import WeightStart, variance_only
from varshift_lab.recipes._dropout_variance_plan import plan, trained_dense
from varshift_lab.recipes._dropout_variance_signal import SignalTrial
from varshift_lab.training import TrainingSettings, TrainingTrial, evaluate

BENCH = Workbench()


@pytest.mark.parametrize(
    ("start", "keep", "gain"),
    [
        # What theory says of ReLU, A = B = 1/2: 1, A/k / (A/k + k B), A/k / (A/k + B/k), 1/k and 1/(2k).
        ("corrected", 1.0, 1.0),
        ("corrected", 0.5, 1.0),
        ("paper", 0.5, 0.8),
        ("autograd", 0.5, 0.5),
        ("he", 0.5, 2.0),
        ("xavier", 0.5, 1.0),
        ("xavier", 1.0, 0.5),
    ],
)
def test_signals_gain_what_theory_says(start, keep, gain):
    found = SignalTrial(0, start, keep, samples=500).run(BENCH)
    assert found["signal_gain"] == pytest.approx(gain, rel=0.05)
    # For ReLU the gradient, which passes the same masks, gains as much on its way back.
    assert found["gradient_gain"] == pytest.approx(gain, rel=0.05)
    assert len(found["signal"]) == len(found["gradient"]) == 20
    assert found["signal_drift"] == pytest.approx(abs(19 * math.log10(found["signal_gain"])))


def test_signals_follow_their_seed():
    first, again, other = (SignalTrial(seed, "he", 0.6, depth=3, width=50).run(BENCH) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_unknown_starts_are_refused():
    with pytest.raises(ValueError, match="start='lecun' must be one of corrected"):
        SignalTrial(0, "lecun", 1.0)


def test_the_corrected_start_knows_the_dropout_in_front_of_each_layer():
    network = vgg(15, in_channels=3, width=8)
    WeightStart(True).prepare(network)
    layers = [module for module in network.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    norms = [layer.weight.flatten(1).norm(dim=1) for layer in layers]
    # keep probabilities of the paper's code in front of each layer; ReLU feeds all but the first
    keeps = [1, 0.7, 1, 0.6, 1, 0.6, 0.6, 1, 0.6, 0.6, 1, 0.6, 0.6, 0.5, 0.5]
    gains = [1.0] + [(0.5 / keep) ** -0.5 for keep in keeps[1:]]
    for norm, gain in zip(norms, gains, strict=True):
        torch.testing.assert_close(norm, torch.full_like(norm, gain))
    assert all(not layer.bias.any() for layer in layers)


def test_hes_start_does_not():
    network = vgg(15, in_channels=3, width=32)
    WeightStart(False).prepare(network)
    layers = [module for module in network.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    for layer in layers[1:]:
        assert layer.weight[0].numel() * layer.weight.detach().var().item() == pytest.approx(2, rel=0.1)


def test_halfway_is_on_the_way():
    for scale in ("smoke", "laptop", "paper"):
        for one in plan(scale).reestimations:
            half, whole = (trained_dense(scale, one, halfway=halfway)[0] for halfway in (True, False))
            assert isinstance(half, TrainingTrial)
            epochs = half.settings.epochs
            assert 2 * epochs == whole.settings.epochs
            rates = [
                [trial.settings.rate(step, trial.settings.epochs) for step in range(epochs)]
                for trial in (half, whole)
            ]
            assert rates[0] == rates[1]


def test_new_variances_leave_means_and_the_network_alone():
    torch.manual_seed(0)
    digits = subset(digit_images(), 200)
    network = densenet(7, in_channels=1, growth=4, width=4, dropout=0.5)
    loader = EpochLoader(digits, 50, drop_last=True)
    for inputs, _ in [batch for _ in range(15) for batch in loader]:  # statistics with the noise on
        network(inputs)
    before = copy.deepcopy(network.state_dict())
    settings = TrainingSettings(epochs=1, batch_size=50, learning_rate=0.1)
    found = variance_only(network, digits, digits, BENCH, settings)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert network.training

    # by hand: noise off, statistics of each batch, and the means put back
    network.eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()
    with torch.no_grad():
        for inputs, _ in EpochLoader(digits, 50, drop_last=True):
            network(inputs)
    moved = network.state_dict()
    assert any(not torch.equal(moved[name], before[name]) for name in before if name.endswith("running_var"))
    kept = {name: value for name, value in before.items() if name.endswith("running_mean")}
    network.load_state_dict({**moved, **kept})
    by_hand = evaluate(network, EpochLoader(digits, 200, order="stored"))
    assert found["variance_only_test_loss"] == pytest.approx(by_hand.loss)
    network.load_state_dict(before)
    as_trained = evaluate(network, EpochLoader(digits, 200, order="stored"))
    assert found["variance_only_test_loss"] != pytest.approx(as_trained.loss)
