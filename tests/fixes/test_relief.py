"""Statistics that are re-estimated relieve what no safe cure removes, and the cause is named."""

import torch
from sick_networks import data, trained
from torch import nn

import varshift as vs


class DropAll(nn.Module):
    """Drop path without a path around it."""

    def __init__(self, rate):
        super().__init__()
        self.rate = rate

    def forward(self, x):
        if not self.training:
            return x
        return x * (torch.rand(x.shape[0], 1) >= self.rate) / (1 - self.rate)


def test_a_cause_that_stays_is_relieved_and_named():
    torch.manual_seed(0)
    layers = []
    for size in (8, 32, 32):
        layers += [nn.Linear(size, 32), nn.BatchNorm1d(32), nn.ReLU(), DropAll(0.5)]
    network, _ = trained(nn.Sequential(*layers[:-1], nn.Linear(32, 4)), epochs=16)
    cured = vs.fix(network, loader=data())
    assert {finding.code for finding in cured.before.findings if finding.severity == "error"} == {"VS107"}
    assert {change.method for change in cured.changes} == {"statistics"}
    assert not cured.ok
    assert "the cause is still there" in cured.failures[0].tried[-1][1]
    assert cured.after.gap.states["eval"] < cured.before.gap.states["eval"]
    deepest = cured.before.layers[-1].ratio, cured.after.layers[-1].ratio
    assert deepest[0] < 0.3
    assert 0.85 < deepest[1] < 1.15  # small batches leave a little
