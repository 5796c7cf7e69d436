"""A norm whose call says training=True is made to follow the mode of its module."""

import torch
from sick_networks import data, trained
from torch import nn
from torch.nn import functional as F

import varshift as vs


class Always(nn.BatchNorm1d):
    """Uses the batch in every mode, although it has running statistics."""

    def forward(self, x):
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, training=True, momentum=0.1
        )


class Proper(nn.BatchNorm1d):
    """Passes its mode on."""

    def forward(self, x):
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training)


def network(norm):
    torch.manual_seed(0)
    return trained(nn.Sequential(nn.Linear(8, 32), norm(32), nn.ReLU(), nn.Linear(32, 4)))[0]


def test_a_norm_in_batch_mode_follows_its_module():
    sick = network(Always)
    cured = vs.fix(sick, loader=data())
    assert any(finding.code == "VS401" for finding in cured.before.findings)
    assert any(change.cure == "follow-mode" for change in cured.changes), cured
    assert isinstance(cured.model[1], Always)
    assert list(cured.model.state_dict()) == list(sick.state_dict())
    x = next(iter(data()))[0]
    alone = torch.cat([cured.model.eval()(one[None]) for one in x])
    assert torch.allclose(alone, cured.model(x), atol=1e-5)
    before = sick.eval()(x)
    assert not torch.allclose(before[:8], sick(x[:8]), atol=1e-3)


def test_a_norm_that_follows_its_module_is_left_alone():
    cured = vs.fix(network(Proper), loader=data())
    assert not cured.changes
    wished = vs.fix(network(Proper), loader=data(), cures=["follow-mode"])
    assert not wished.changes
