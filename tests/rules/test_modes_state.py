"""VS406 on hand-made evidence and on networks that write in evaluation mode."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import varshift as vs


@pytest.mark.parametrize(
    ("drift", "losses", "severity"),
    [
        (0.3, None, "error"),
        (0.01, (1.0, 1.3), "error"),
        (0.01, (1.0, 1.001), "warning"),
        (5e-4, None, "advice"),
        (5e-5, None, None),
        (None, None, None),
    ],
)
def test_it_is_graded_by_what_it_does(build, drift, losses, severity):
    trials = build.trials(drift=drift, drift_losses=losses, drift_at=build.parting(), written=("a.scale",))
    result = build.findings("VS406", build.evidence(trials=trials))
    assert [(one.severity, one.where) for one in result] == ([(severity, "mix")] if severity else [])
    assert all("'a.scale'" in one.message for one in result)


class Centred(nn.Module):
    """Subtracts a running mean that it goes on learning, in evaluation too or not."""

    def __init__(self, always: bool) -> None:
        super().__init__()
        self.always = always
        self.register_buffer("centre", torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        if self.training or self.always:
            self.centre = self.centre.lerp(x.detach().mean(0), 0.3)
        return x - self.centre


class Counting(nn.Module):
    """Counts its calls and keeps its last input: neither changes an output."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.last = 0, None

    def forward(self, x: Tensor) -> Tensor:
        self.calls, self.last = self.calls + 1, x.detach()
        return x


class Remembering(nn.Module):
    """Adds what it was last called with: state in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.past = nn.Linear(6, 6), []

    def forward(self, x: Tensor) -> Tensor:
        h = self.linear(x)
        out = h + self.past[-1].mean(0) if self.past else h
        self.past.append(h.detach())
        return out


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(16, 6, generator=generator) + 1, torch.randint(3, (16,), generator=generator))
        for _ in range(5)
    ]


def network(middle: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 6), middle, nn.Linear(6, 3))


@pytest.mark.parametrize(
    ("middle", "written"), [(Centred(True), "1.centre"), (Remembering(), "1.past")], ids=["buffer", "list"]
)
def test_state_that_reaches_the_outputs_is_named_with_its_module(middle, written):
    report = vs.check(network(middle), batches(), select=["VS4", "VS106"])
    assert [finding.code for finding in report.findings] == ["VS406"]
    (finding,) = report.findings
    assert finding.severity in ("warning", "error")
    assert finding.where == "1"
    assert written in finding.evidence["written"]


@pytest.mark.parametrize(
    "middle", [Centred(False), Counting(), nn.Dropout(0.5), nn.BatchNorm1d(6)], ids=lambda m: type(m).__name__
)
def test_state_that_changes_no_output_is_no_finding(middle):
    net = network(middle)
    before = torch.random.get_rng_state()
    assert vs.check(net, batches(), select=["VS406"]).findings == ()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_nothing_that_is_written_stays_in_the_model():
    middle = Remembering()
    vs.check(network(middle), batches(), select=["VS406"])
    assert middle.past == []
