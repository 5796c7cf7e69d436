"""Recalibration without data: what it removes, what it leaves alone, and the way back."""

import copy

import pytest
import torch
from hand_norms import C, FrozenParameters, Sums
from long_runs import a_few
from torch import nn
from torch.nn import functional as F

import varshift as vs
from varshift._threads import one_thread
from varshift_lab._trainer import TrainingSettings, train
from varshift_lab.data import digits, tensor_loader
from varshift_lab.networks import preresnet


def trained(dropout, placement):
    torch.manual_seed(0)
    net = preresnet(20, 10, dropout=dropout, placement=placement, in_channels=1, width=8)
    data = digits()
    loader = tensor_loader(data.train_images, data.train_labels, 64, shuffle=True, drop_last=True)
    with one_thread():
        train(net, loader, TrainingSettings(epochs=8, learning_rate=0.1))
    return net, loader


def loss(net):
    data = digits()
    net.eval()
    with torch.no_grad():
        images, labels = (data.train_images, data.train_labels)
        return float(F.cross_entropy(net(images), labels))


def test_removes_what_data_remove():
    net, loader = trained(0.5, "a")
    vs.recalibrate(net, loader, noise=True)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    shipped = loss(net)
    with_data = copy.deepcopy(net)
    vs.recalibrate(with_data, loader)
    removed = shipped - loss(with_data)
    assert removed > 0.05 * shipped
    handle = vs.recalibrate(net, shape=(1, 8, 8))
    # The last norms keep their statistics: what drifts through 18 norms is predicted to some 10 % only.
    assert shipped - loss(net) > 0.75 * removed
    assert sum(layer.updated for layer in handle.layers) >= 15
    reasons = dict(handle.skipped)
    assert reasons.pop("stages.0.0.norm1") == "no noise reaches it, so its statistics fit"
    assert set(reasons.values()) <= {"its prediction is uncertain"}
    assert "without data" in repr(handle)
    handle.undo()
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())


@pytest.mark.parametrize(("dropout", "placement"), a_few([(0.1, "b"), (0.0, "none")], 1))
def test_does_no_harm_to_a_healthy_network(dropout, placement):
    net, loader = trained(dropout, placement)
    vs.recalibrate(net, loader, noise=True)
    shipped = loss(net)
    vs.recalibrate(net, shape=(1, 8, 8))
    assert loss(net) < 1.01 * shipped + 1e-4


def small():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Conv2d(8, 8, 3),
        nn.BatchNorm2d(8),
    )


def test_statistics_that_were_never_learned_stay():
    net = small()
    handle = vs.recalibrate(net, shape=(3, 10, 10))
    assert handle.skipped["5"] == "its prediction is uncertain"
    assert not any(layer.updated for layer in handle.layers)
    assert torch.equal(net[5].running_var, torch.ones(8))


def test_flags_counters_and_random_states_stay():
    net = small()
    for _ in range(20):
        net(torch.randn(16, 3, 10, 10))
    net[1].eval()
    flags, counter = [module.training for module in net.modules()], net[5].num_batches_tracked.clone()
    state = torch.get_rng_state()
    buffers = [id(buffer) for buffer in net.buffers()]
    handle = vs.recalibrate(net, shape=(3, 10, 10))
    assert [layer.updated for layer in handle.layers] == [False, True]
    assert flags == [module.training for module in net.modules()]
    assert buffers == [id(buffer) for buffer in net.buffers()]
    assert torch.equal(counter, net[5].num_batches_tracked)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    "arguments",
    [{"noise": True}, {"estimator": "ema"}, {"tolerance": 0.01}, {"max_batches": 3}],
)
def test_what_asks_for_data_is_refused(arguments):
    with pytest.raises(ValueError, match="ask for data"):
        vs.recalibrate(small(), shape=(3, 10, 10), **arguments)


def test_shape_beside_a_loader_is_refused():
    with pytest.raises(ValueError, match="beside a loader"):
        vs.recalibrate(small(), [torch.randn(4, 3, 10, 10)], shape=(3, 10, 10))


def test_shape_that_cannot_be_told_is_asked_for():
    net = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5), nn.BatchNorm1d(4))
    with pytest.raises(vs.DataError, match="pass shape="):
        vs.recalibrate(net)


@pytest.mark.parametrize("norm", [FrozenParameters, Sums])
def test_norms_written_by_hand_are_named_even_without_data(norm):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, C), nn.Dropout(0.3), norm())
    for _ in range(20):
        net(torch.randn(16, 6))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    handle = vs.recalibrate(net, shape=(6,))
    assert [layer.name for layer in handle.layers] == ["2"]
    assert handle.layers[0].updated or "2" in handle.skipped
    handle.undo()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
