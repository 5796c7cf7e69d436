"""VS403 on hand-made evidence and on networks whose norms see several signals."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import varshift as vs
from varshift.probe import Distributions, NormCalls


def distributions(ratio: float = 1.0, offset: float = 0.0, consistency: float | None = 1.0) -> Distributions:
    return Distributions(2, (1.0, ratio), ratio, offset, consistency)


def found(build, one: NormCalls, delta: float | None = None, samples: int = 512):
    gap = None if delta is None else build.gap_of(small_batch=delta, spread=1e-3)
    measurement = build.measurement(gap=gap, samples=samples)
    known = build.evidence(build.facts(), norm_calls=(one,), measurement=measurement)
    return build.findings("VS403", known)


@pytest.mark.parametrize(
    ("spread", "severity"),
    [
        (distributions(1.2, 0.2), None),
        (distributions(1.6), "advice"),
        (distributions(3.0), "warning"),
        (distributions(offset=0.6), "advice"),
        (distributions(offset=1.2), "warning"),
        (distributions(float("inf")), "warning"),
        (distributions(offset=0.1, consistency=5.0), None),
    ],
)
def test_without_a_loss_the_distance_decides(build, spread, severity):
    result = found(build, NormCalls("bn", calls=spread))
    assert [(one.where, one.severity) for one in result] == ([("bn", severity)] if severity else [])


@pytest.mark.parametrize("way", ["calls", "configurations", "batches"])
@pytest.mark.parametrize(
    ("delta", "severity"), [(0.2, "error"), (0.08, "warning"), (0.001, "advice"), (-0.2, "advice")]
)
def test_the_cost_decides_where_there_is_a_loss(build, way, delta, severity):
    (finding,) = found(build, NormCalls("bn", **{way: distributions(3.0)}), delta)
    assert finding.severity == severity
    assert finding.evidence["way"] == way
    assert finding.evidence["cost"] == pytest.approx(delta)


def test_calls_that_differ_little_and_always_alike_count_where_they_cost_something(build):
    alike = NormCalls("bn", calls=distributions(1.05, 0.1, consistency=5.0))
    (finding,) = found(build, alike, 0.2)
    assert finding.severity == "error"
    assert found(build, alike, 0.001) == ()
    assert found(build, alike, 0.2, samples=64) == ()  # batches of four: VS302
    chance = NormCalls("bn", calls=distributions(1.05, 0.1, consistency=1.2))
    assert found(build, chance, 0.2) == ()


class Levels(nn.Module):
    """One norm, or one each, for inputs of several scales."""

    def __init__(self, own: bool, scales: tuple[float, ...], norm: type[nn.Module]) -> None:
        super().__init__()
        self.scales, self.inner = scales, nn.Conv1d(3, 8, 3, padding=1)
        self.norms = nn.ModuleList(norm(8) for _ in range(len(scales) if own else 1))

    def forward(self, x: Tensor) -> Tensor:
        outs = []
        for i, scale in enumerate(self.scales):
            outs.append(F.relu(self.norms[i % len(self.norms)](self.inner(scale * x))).mean(2))
        return torch.cat(outs, 1)


class ByHand(nn.Module):
    """A norm without torch's kernel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("average", torch.zeros(width))
        self.register_buffer("power", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.average, self.power
        if self.training:
            mean, var = x.mean((0, 2)), x.var((0, 2))
            self.average = 0.9 * self.average + 0.1 * mean.detach()
            self.power = 0.9 * self.power + 0.1 * var.detach()
        return (x - mean[:, None]) / (var[:, None] + 1e-5).sqrt()


class Slim(nn.Module):
    """Draws its width for every step."""

    def __init__(self, draw: str) -> None:
        super().__init__()
        self.draw = draw
        self.first, self.norm, self.last = nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        width = 16
        if self.training and self.draw == "python":
            width = random.choice((4, 16))
        elif self.training and self.draw == "torch":
            width = 4 if torch.rand(()).item() < 0.5 else 16
        h = self.first(x)
        h = torch.cat([h[:, :width], torch.zeros_like(h[:, width:])], 1)
        return self.last(F.dropout(F.relu(self.norm(h)), 0.1, self.training))


def learnt(network: nn.Module, batches: list[Tensor]) -> nn.Module:
    network.train()
    with torch.no_grad():
        for _ in range(10):
            for batch in batches:
                network(batch)
    return network.eval()


def report(network: nn.Module, *shape: int) -> vs.Report:
    torch.manual_seed(0)
    batches = [torch.randn(32, *shape) for _ in range(8)]
    return vs.check(learnt(network, batches), batches, select=["VS403"])


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, ByHand])
def test_one_norm_for_several_scales(norm):
    torch.manual_seed(0)
    (finding,) = report(Levels(False, (1.0, 3.0, 9.0), norm), 3, 10).findings
    assert (finding.where, finding.severity) == ("norms.0", "warning")
    assert finding.evidence["distributions"] == 3
    assert finding.evidence["ratio"] == pytest.approx(81, rel=0.01)
    assert report(Levels(True, (1.0, 3.0, 9.0), norm), 3, 10).findings == ()
    assert report(Levels(False, (1.0, 1.1), norm), 3, 10).findings == ()


@pytest.mark.parametrize("draw", ["python", "torch", "never"])
def test_one_norm_for_several_widths(draw):
    torch.manual_seed(0)
    findings = report(Slim(draw), 6).findings
    assert [one.evidence["way"] for one in findings] == ["configurations"] * (draw != "never")
    assert all(one.evidence["distributions"] == 2 for one in findings)


def test_one_norm_for_batches_of_two_domains():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
    batches = [torch.randn(32, 6) * (1 + i % 2) + 3 * (i % 2) for i in range(12)]
    (finding,) = vs.check(learnt(network, batches), batches, select=["VS403"]).findings
    assert (finding.where, finding.evidence["way"]) == ("1", "batches")
    mixed = list(torch.cat(batches)[torch.randperm(12 * 32)].split(32))
    assert vs.check(learnt(network, mixed), mixed, select=["VS403"]).findings == ()
