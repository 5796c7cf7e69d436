"""Biases in front of batch norms, left out."""

import copy

import pytest
import torch
from torch import nn
from treatment import codes, digest, images, learnt, same, stack, treated

import varshift as vs
from varshift.fixes import Refused

x = next(iter(images(shuffle=False)))[0]


@pytest.fixture(scope="module")
def trained():
    return learnt(lambda: stack(nn.BatchNorm2d(8)))


@pytest.fixture
def network(trained):
    network = copy.deepcopy(trained)
    with torch.no_grad():
        network[0].bias.add_(2)
        network[1].running_mean.add_(2)
    return network


def test_evaluation_computes_what_it_did_and_the_finding_is_gone(network):
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    report = vs.check(network, images(), optimizer=optimizer, select=["VS501"])
    assert codes(report) == ["VS501"]
    before = network.eval()(x)
    surgery, changes = treated(network, x, "drop-bias", loader=images(), finding=report.findings[0])
    torch.testing.assert_close(network(x), before, atol=1e-5, rtol=0)
    assert network[0].bias is None
    assert network[3].bias is None
    assert {str(change.site) for change in changes} == {"0:weight", "3:weight"}
    assert [new for _, new in surgery.replaced.values()] == [None, None]
    again = torch.optim.SGD(network.parameters(), 0.1)
    assert codes(vs.check(network, images(), optimizer=again, select=["VS501"])) == []


def test_training_computes_what_it_did(network):
    other = copy.deepcopy(network)
    treated(network, x, "drop-bias")
    torch.testing.assert_close(network.train()(x), other.train()(x), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(network[1].running_mean, other[1].running_mean - other[0].bias.detach())


def test_a_copy_is_cured_with_its_optimiser(network):
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    network.train()(x).sum().backward()
    optimizer.step()
    before = digest(network)
    cured = vs.fix(network, loader=images(), optimizer=optimizer, cures=["drop-bias"])
    assert same(digest(network), before)
    assert not cured.failures
    held = [p for group in cured.optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in cured.model.parameters()}
    assert cured.model[0].bias is None
    torch.testing.assert_close(cured.model.eval()(x), network.eval()(x), atol=1e-5, rtol=0)


def test_undo(network):
    before = digest(network)
    surgery, _ = treated(network, x, "drop-bias")
    surgery.undo()
    assert same(digest(network), before)


def test_a_bias_that_something_else_reads_stays():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.norm, self.other = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)

        def forward(self, x):
            x = self.linear(x)
            return self.norm(x) + self.other(x)

    with pytest.raises(Refused, match="no bias is read by a batch norm alone"):
        treated(Two(), torch.randn(8, 3), "drop-bias")


def test_shared_layers_and_shared_biases_stay():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.norm = nn.Linear(3, 3), nn.BatchNorm1d(3)

        def forward(self, x):
            return self.norm(self.linear(self.norm(self.linear(x))))

    with pytest.raises(Refused, match="no bias"):
        treated(Twice(), torch.randn(8, 3), "drop-bias")
    tied = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 3))
    tied[3].bias = tied[0].bias
    with pytest.raises(Refused, match="no bias"):
        treated(tied, torch.randn(8, 3), "drop-bias")


def test_instance_norms_and_group_norms_are_left_alone():
    with pytest.raises(Refused, match="no norm"):
        treated(nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8)), x, "drop-bias")
    with pytest.raises(Refused, match="no bias"):
        treated(
            nn.Sequential(nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8, track_running_stats=True)), x, "drop-bias"
        )
