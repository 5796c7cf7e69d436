"""VS107: drop path on the wrong tensor, and noise that is not rescaled."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import varshift as vs


class Drop(nn.Module):
    """Dropout by hand, for units or whole samples."""

    def __init__(self, rate: float, *, divide: bool, path: bool = False) -> None:
        super().__init__()
        self.rate, self.divide, self.path = rate, divide, path

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        shape = (len(x), *(1,) * (x.dim() - 1)) if self.path else x.shape
        x = x * (torch.rand(shape) > self.rate)
        return x / (1 - self.rate) if self.divide else x


class Residual(nn.Module):
    def __init__(self, width: int, drop: nn.Module) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width))
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.drop(self.branch(x)))


def dense(drop: nn.Module) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(48, 32), nn.BatchNorm1d(32), nn.ReLU(), drop, nn.Linear(32, 32),
        nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4),
    )  # fmt: skip


def plain(drop: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 32), nn.ReLU(), drop, nn.Linear(32, 4))


def denoising(drop: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Flatten(), drop, nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 4))


def residual(drop: nn.Module) -> nn.Module:
    blocks = (nn.Conv2d(3, 8, 3, padding=1), Residual(8, drop), Residual(8, nn.Identity()))
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


def unscaled(report: vs.Report) -> list[vs.Finding]:
    return [one for one in report.findings if one.code == "VS107" and "mean_factor" in one.evidence]


@pytest.mark.parametrize("build", [dense, plain, residual])
@pytest.mark.parametrize("path", [False, True])
def test_noise_without_rescaling_is_certain_without_data(build, path):
    (finding,) = unscaled(vs.check(build(Drop(0.4, divide=False, path=path)), shape=(3, 4, 4)))
    assert (finding.severity, finding.confidence) == ("warning", "certain")
    assert finding.evidence["mean_factor"] == pytest.approx(0.6)
    assert "0.6 times" in finding.message
    assert finding.source is not None
    assert finding.source.file == __file__
    (remedy,) = finding.cures
    assert (remedy.code, remedy.options["factor"]) == ("rescale-noise", pytest.approx(0.6))
    assert not unscaled(vs.check(build(Drop(0.4, divide=True, path=path)), shape=(3, 4, 4)))


@pytest.mark.parametrize(("build", "rate"), [(denoising, 0.4), (dense, 0.05)])
def test_a_masked_input_and_a_small_rate_are_advice(build, rate):
    (finding,) = unscaled(vs.check(build(Drop(rate, divide=False)), shape=(3, 4, 4)))
    assert finding.severity == "advice"


def test_several_places_are_one_finding():
    drop = Drop(0.4, divide=False)
    net = nn.Sequential(
        plain(drop)[:3], drop, nn.Linear(32, 16), nn.ReLU(), Drop(0.5, divide=False), nn.Linear(16, 4)
    )
    (finding,) = unscaled(vs.check(net, shape=(3, 4, 4)))
    assert len(finding.sites) == 2
    assert finding.evidence["mean_factor"] == pytest.approx(0.5)  # the worst


def labelled(count: int = 512) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(4, (count,), generator=generator)
    x = torch.randn(4, 3, 4, 4, generator=generator)[y] + torch.randn(count, 3, 4, 4, generator=generator)
    return list(zip(x.split(32), y.split(32), strict=True))


def trained(model: nn.Module, batches, steps: int = 160) -> nn.Module:
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(steps):
        x, y = batches[step % len(batches)]
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval()


def test_noise_on_the_input_that_costs_nothing_is_no_warning():
    batches = labelled()
    denoised = trained(denoising(Drop(0.3, divide=False)), batches)
    assert [one.severity for one in unscaled(vs.check(denoised, batches))] in (["advice"], [])


@pytest.mark.parametrize(
    ("reaches", "step", "deltas", "severity"),
    [
        (("bn",), "variance-shift", {"variance_shift": 0.2}, "error"),
        (("bn",), "variance-shift", {"variance_shift": 0.08}, "warning"),
        (("bn",), "variance-shift", {"noise": 0.2}, "advice"),
        ((), "noise", {"noise": 0.2}, "error"),
        ((), "noise", {"noise": -0.2}, "advice"),
    ],
)
def test_with_a_loss_the_step_that_it_answers_for_decides(build, reaches, step, deltas, severity):
    site = build.noise(mean_factor=0.6, reaches=reaches, nearest=reaches[0] if reaches else None)
    known = build.measurement(gap=build.gap_of(**deltas))
    (finding,) = build.findings("VS107", build.evidence(train=with_a_weight(build, site), measurement=known))
    assert (finding.severity, finding.step) == (severity, step)


def with_a_weight(build, site):
    """A flow in which the noise is not on the input."""
    nodes = [build.node(0, "weight"), build.node(1, "noise", (0,))]
    return build.flow([site], nodes=nodes)


def test_a_gate_on_the_sum_is_the_cause_of_the_shift_and_comes_alone():
    class Whole(Residual):
        def forward(self, x: Tensor) -> Tensor:
            return self.drop(F.relu(x + self.branch(x)))

    def net() -> nn.Module:
        blocks = [Whole(8, Drop(0.3, divide=True, path=True)) for _ in range(3)]
        pooled = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
        return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *blocks, *pooled)

    batches = labelled()
    report = vs.check(trained(net(), batches), batches)
    codes = [one.code for one in report.findings]
    assert codes[0] == "VS107"
    assert not {"VS101", "VS102", "VS207"} & set(codes)
    assert len(report.findings[0].sites) == 3
    assert report.findings[0].severity == "error"
