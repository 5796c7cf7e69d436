"""Statistics that are re-estimated relieve what no safe cure removes, and the cause is named."""

from dataclasses import replace

import pytest
import torch
from sick_networks import data, trained
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import varshift as vs
from varshift import SiteId
from varshift.rules import Cure, Finding, FindingSite


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


def fitted(network, batches, epochs=6, rate=5e-3):
    """The network after a training on the batches given, in their order."""
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(network.parameters(), rate)
    network.train()
    for _ in range(epochs):
        for x, y in batches:
            optimizer.zero_grad()
            F.cross_entropy(network(x), y).backward()
            optimizer.step()
    return network


def perceptron(size=8, classes=4):
    layers = [nn.Linear(size, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 32), nn.BatchNorm1d(32)]
    return nn.Sequential(*layers, nn.ReLU(), nn.Linear(32, classes))


def statistics(network):
    return {name: value.clone() for name, value in network.named_buffers()}


def other_inputs():
    """A sound network, and its batches without the standardisation that it was trained with."""
    x, y = data().dataset.tensors
    deviation, mean = torch.std_mean(x, 0)
    network = fitted(perceptron(), DataLoader(TensorDataset((x - mean) / deviation, y), 64, shuffle=True))
    return network, DataLoader(TensorDataset(x, y), 64, shuffle=True)


def test_statistics_are_never_taken_from_inputs_that_are_prepared_otherwise():
    network, loader = other_inputs()
    cured = vs.fix(network, loader=loader)
    assert "VS306" in [finding.code for finding in cured.before.findings]
    states = cured.before.gap.states
    assert states["recalibrated"] < 0.7 * states["eval"]  # the loss on these batches is deceptive
    assert not cured.changes
    after = statistics(cured.model)
    assert all(torch.equal(value, after[name]) for name, value in statistics(network).items())


@pytest.mark.parametrize("code", ["VS306", "VS210"])
def test_no_other_finding_has_statistics_re_estimated_that_a_finding_wants_kept(code):
    """Neither as its own cure, nor after a cure that changes what arrives at norms."""
    network, loader = other_inputs()
    report = vs.check(network, loader)
    sites = report.findings[0].sites
    keep = Finding(code, "error", "measured", sites, "Keep them.")
    recalibrate = Cure("recalibrate", "recalibrate", "safe")
    stale = Finding("VS202", "warning", "measured", sites, "They are stale.", cures=(recalibrate,))
    report = replace(report, findings=(stale, keep))
    cured = vs.fix(network, report, loader=loader)
    assert not cured.changes
    assert code in dict(cured.failures[0].tried)["recalibrate"]


def by_class(network_batches=64):
    """Batches of one class each, and a network that was trained on them in this order."""
    x, y = data().dataset.tensors
    order = y.argsort(stable=True)
    loader = DataLoader(TensorDataset(x[order], y[order]), network_batches)
    return fitted(perceptron(), loader, epochs=3, rate=1e-3), loader


def test_averages_of_the_last_kinds_become_those_of_all_batches():
    network, loader = by_class()
    cured = vs.fix(network, loader=loader)
    assert [finding.code for finding in cured.before.findings if finding.severity == "error"] == ["VS304"]
    assert {change.cure for change in cured.changes} == {"recalibrate"}
    (failure,) = [one for one in cured.failures if one.finding == "VS304"]
    assert "statistics" in dict(failure.tried)["recalibrate"]
    assert "the cause is still there" in dict(failure.tried)["recalibrate"]
    pooled = loader.dataset.tensors[0] @ network[0].weight.T + network[0].bias
    torch.testing.assert_close(cured.model[1].running_mean, pooled.mean(0).detach(), rtol=1e-3, atol=1e-4)


def test_new_statistics_that_were_not_measured_to_help_are_not_kept():
    """A finding about something else, on a network whose statistics are right."""
    batches = DataLoader(data().dataset, 64, shuffle=True, generator=torch.Generator().manual_seed(0))
    network = fitted(perceptron(), batches)
    network = vs.fix(network, loader=batches, cures=["recalibrate"]).model
    report = vs.check(network, batches)
    sick = Finding("VS303", "warning", "measured", (FindingSite(SiteId("1", "norm")),), "Sick.")
    cured = vs.fix(network, replace(report, findings=(sick,)), loader=batches)
    assert not cured.changes
    assert "not measured to help" in dict(cured.failures[0].tried)["recalibrate"]


def test_statistics_follow_a_loader_that_leaves_the_batch_of_one_out():
    x, y = data().dataset.tensors
    loader = DataLoader(TensorDataset(x[:-63], y[:-63]), 64)
    network = nn.Sequential(nn.Unflatten(1, (1, 8)), nn.Conv1d(1, 8, 3), nn.BatchNorm1d(8), nn.Flatten())
    network = fitted(network.append(nn.Linear(48, 4)), loader, epochs=2)
    cured = vs.fix(network, loader=loader)
    assert [change.cure for change in cured.changes] == ["drop-last", "recalibrate"]
    seen = x[:-64].unfold(1, 3, 1) @ network[1].weight[:, 0].T + network[1].bias
    assert len(x[:-64]) % 64 == 0
    torch.testing.assert_close(cured.model[2].running_var, seen.var((0, 1)).detach(), rtol=1e-3, atol=1e-4)


def test_statistics_follow_a_change_whatever_they_do_for_another_finding():
    batches = DataLoader(data().dataset, 64, shuffle=True, generator=torch.Generator().manual_seed(0))
    network = fitted(nn.Sequential(nn.Dropout(0.01), *perceptron()), batches)
    network = vs.fix(network, loader=batches, cures=["recalibrate"]).model
    report = vs.check(network, batches)
    noisy = FindingSite(SiteId("0", "dropout"))
    removable = Finding(
        "VS102",
        "warning",
        "measured",
        (noisy,),
        "Noise.",
        cures=(Cure("remove-noise", "remove it", "unsafe", noisy.id),),
    )
    other = Finding("VS303", "warning", "measured", (FindingSite(SiteId("2", "norm")),), "Sick.")
    report = replace(report, findings=(removable, other))
    cured = vs.fix(network, report, loader=batches, unsafe=True)
    assert [change.cure for change in cured.changes] == ["remove-noise", "recalibrate", "recalibrate"]
