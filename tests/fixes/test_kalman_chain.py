"""Batch Kalman norms in the place of batch norms."""

import copy

import pytest
import torch
from torch import nn
from treatment import copies, digest, images, learnt, patient_of, same, stack, treated

import varshift as vs
from varshift.fixes import ChainedKalmanNorm2d, Refused, plan_cure
from varshift.functional import KalmanState
from varshift.nn import BatchKalmanNorm2d
from varshift.rules import Cure

x = next(iter(images(shuffle=False)))[0]


class Net(nn.Module):
    """Three norms: one after another, and one after a sum."""

    def __init__(self):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.norm3, self.head = nn.BatchNorm2d(8), nn.Linear(8, 2)
        self.relu = nn.LeakyReLU(0.2)

    def forward(self, x):
        x = self.relu(self.norm1(self.conv1(x)))
        return self.head(torch.relu(self.norm3(x + self.norm2(self.conv2(x)))).mean((2, 3)))


@pytest.fixture(scope="module")
def trained():
    return learnt(Net)


@pytest.fixture
def network(trained):
    return copy.deepcopy(trained)


def test_evaluation_and_state_are_those_of_the_batch_norms(network):
    before, parameters, keys = network.eval()(x), dict(network.named_parameters()), set(network.state_dict())
    surgery, changes = treated(network, x, "swap-norm", to="kalman")
    torch.testing.assert_close(network(x), before, atol=1e-5, rtol=0)
    assert [str(change.site) for change in changes] == ["norm1:batch_norm", "norm2:batch_norm"]
    assert isinstance(network.norm3, nn.BatchNorm2d)  # after a sum there is nothing to predict from
    assert set(network.state_dict()) == keys
    assert all(one is parameters[name] for name, one in network.named_parameters())
    assert not surgery.replaced
    assert network.norm2._link == (network.norm1, network.conv2)
    assert network.norm2.transition.negative_slope == pytest.approx(0.2)


def test_training_is_that_of_the_layers_of_the_paper(network):
    treated(network, x, "swap-norm", to="kalman", prediction_weight=0.5)
    network.train()
    signals = {}
    for name in ("norm1", "norm2"):
        network.get_submodule(name).register_forward_hook(
            lambda _, args, output, name=name: signals.__setitem__(name, (args[0], output))
        )
    norms = {}
    for name in ("norm1", "norm2"):
        own = network.get_submodule(name)
        norm = BatchKalmanNorm2d(
            8,
            own.eps,
            transition=own.transition.kind,
            prediction_weight=0.5,
            state_source="post-affine",
            negative_slope=own.transition.negative_slope,
        )
        norm.load_state_dict(own.state_dict())
        norms[name] = norm
    network(x)
    first, state = norms["norm1"](signals["norm1"][0])
    second, _ = norms["norm2"](signals["norm2"][0], KalmanState(*map(torch.detach, state)), network.conv2)
    torch.testing.assert_close(signals["norm1"][1], first)
    torch.testing.assert_close(signals["norm2"][1], second)
    plain = nn.functional.batch_norm(
        signals["norm2"][0], None, None, network.norm2.weight, network.norm2.bias, training=True
    )
    assert (plain - second).abs().max() > 1e-3  # the prediction has a say


def test_copies_have_chains_of_their_own(network):
    treated(network, x, "swap-norm", to="kalman")
    network.train()(x).sum().backward()
    for other in copies(network):
        assert other.norm2._link == (other.norm1, other.conv2)
        assert other.norm1._state is None
        again = copy.deepcopy(network)
        torch.testing.assert_close(other.eval()(x), again.eval()(x))
        torch.testing.assert_close(other.train()(x), again.train()(x))


def test_a_copy_is_cured_and_undone(network):
    before = digest(network)
    cured = vs.fix(network, loader=images(), cures={"swap-norm": {"to": "kalman"}})
    assert not cured.failures
    assert isinstance(cured.model.norm2, ChainedKalmanNorm2d)
    assert same(digest(network), before)
    surgery, _ = treated(network, x, "swap-norm", to="kalman")
    surgery.undo()
    assert same(digest(network), before)


def test_networks_without_two_norms_in_a_row_are_refused():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    with pytest.raises(Refused, match="no two batch norms follow one another"):
        treated(network, x, "swap-norm", to="kalman")
    pooled = nn.Sequential(*stack(nn.BatchNorm2d(8))[:3], nn.MaxPool2d(2), *stack(nn.BatchNorm2d(8))[3:])
    with pytest.raises(Refused, match="no two batch norms"):
        treated(pooled, x, "swap-norm", to="kalman")
    wish = Cure("swap-norm", "", "safe", None, {"to": "kalman", "prediction_weight": 2})
    with pytest.raises(vs.VarshiftError, match="prediction_weight=2"):
        plan_cure(patient_of(network, x), wish, None)
