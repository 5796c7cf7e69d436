"""VS209: instance norms that keep running statistics, on real networks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import varshift as vs


class HandInstanceNorm(nn.Module):
    """Averages the statistics of single samples under names of its own."""

    def __init__(self, width: int, track: bool) -> None:
        super().__init__()
        self.register_buffer("level", torch.zeros(width))
        self.register_buffer("power", torch.ones(width))
        self.track = track

    def forward(self, x: Tensor) -> Tensor:
        if self.training or not self.track:
            mean, var = x.mean((2, 3)), x.var((2, 3), unbiased=False)
            if self.training:
                self.level = 0.9 * self.level + 0.1 * mean.mean(0).detach()
                self.power = 0.9 * self.power + 0.1 * var.mean(0).detach()
            return (x - mean[..., None, None]) / (var[..., None, None] + 1e-5).sqrt()
        return (x - self.level.view(1, -1, 1, 1)) / (self.power.view(1, -1, 1, 1) + 1e-5).sqrt()


def image_to_image(norm) -> nn.Module:
    layers = [
        nn.Conv2d(1, 8, 3, padding=1),
        norm(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        norm(8),
        nn.ReLU(),
    ]
    return nn.Sequential(*layers, nn.Conv2d(8, 1, 3, padding=1))


def speech(norm) -> nn.Module:
    return nn.Sequential(nn.Conv1d(4, 8, 3), norm(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 14, 3))


def lit(count: int = 192) -> list[tuple[Tensor, Tensor]]:
    """Pictures under light of their own, and the pictures."""
    torch.manual_seed(0)
    clean = F.avg_pool2d(torch.randn(count, 1, 14, 14), 3, 1, 1)
    bright = clean * (0.3 + 2 * torch.rand(count, 1, 1, 1)) + 2 * torch.rand(count, 1, 1, 1)
    return list(zip(bright.split(16), clean.split(16), strict=True))


def trained(model: nn.Module, batches, loss, steps: int = 60) -> nn.Module:
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for step in range(steps):
        x, y = batches[step % len(batches)]
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()
    return model.eval()


def found(model: nn.Module, batches) -> list[vs.Finding]:
    return list(vs.check(model, batches).findings)


@pytest.mark.parametrize("affine", [True, False])
def test_a_tracking_instance_norm_comes_first_and_alone_and_the_cure_is_measured(affine):
    def norm(width: int) -> nn.Module:
        return nn.InstanceNorm2d(width, affine=affine, track_running_stats=True)

    batches = lit()
    model = trained(image_to_image(norm), batches, F.mse_loss)
    report = vs.check(model, batches)
    finding = report.findings[0]
    assert (finding.code, finding.severity, finding.confidence) == ("VS209", "error", "certain")
    assert [site.id.module for site in finding.sites] == ["1", "4"]
    assert not {one.code for one in report.findings} & {"VS201", "VS202", "VS207", "VS302"}
    (remedy,) = finding.cures
    assert (remedy.code, remedy.safety) == ("drop-statistics", "safe")
    for module in model.modules():
        if isinstance(module, nn.InstanceNorm2d):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
    with torch.no_grad():
        after = sum(float(F.mse_loss(model(x), y)) for x, y in batches) / len(batches)
    assert remedy.measured["after"] == pytest.approx(after, rel=1e-4)
    assert remedy.measured["before"] > 1.1 * remedy.measured["after"]
    assert "VS209" not in {one.code for one in found(model, batches)}


def test_a_norm_written_by_hand_and_under_names_of_its_own_is_known_by_what_it_does():
    batches = lit()
    model = trained(image_to_image(lambda width: HandInstanceNorm(width, True)), batches, F.mse_loss)
    findings = found(model, batches)
    assert [(one.code, one.severity) for one in findings][:1] == [("VS209", "error")]
    honest = trained(image_to_image(lambda width: HandInstanceNorm(width, False)), batches, F.mse_loss)
    assert "VS209" not in {one.code for one in found(honest, batches)}


@pytest.mark.parametrize(
    "norm",
    [
        nn.InstanceNorm2d,
        nn.BatchNorm2d,
        lambda width: nn.GroupNorm(2, width),
        lambda width: nn.InstanceNorm2d(width, affine=True),
    ],
)
def test_other_norms_are_let_pass(norm):
    batches = lit()
    model = trained(image_to_image(norm), batches, F.mse_loss)
    assert "VS209" not in {one.code for one in found(model, batches)}


def test_where_samples_are_alike_it_costs_nothing_and_is_advice():
    torch.manual_seed(1)
    x = torch.randn(192, 4, 16)
    y = (x[:, 0].mean(1) > 0).long() + (x[:, 1].mean(1) > 0).long()
    batches = list(zip(x.split(16), y.split(16), strict=True))
    model = trained(
        speech(lambda width: nn.InstanceNorm1d(width, track_running_stats=True, affine=True)),
        batches,
        F.cross_entropy,
        steps=12,
    )
    (finding,) = [one for one in found(model, batches) if one.code == "VS209"]
    assert finding.severity == "advice", finding


def test_without_inputs_the_class_tells_and_without_a_loss_it_is_a_warning():
    model = image_to_image(lambda width: nn.InstanceNorm2d(width, track_running_stats=True))
    (finding,) = vs.check(model, select=["VS209"]).findings
    assert (finding.severity, finding.confidence) == ("warning", "suspected")
    (finding,) = vs.check(model, shape=(1, 14, 14), select=["VS209"]).findings
    assert (finding.severity, finding.confidence) == ("warning", "certain")
    model.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.InstanceNorm2d):
            module.track_running_stats = False
    assert vs.check(model, shape=(1, 14, 14), select=["VS209"]).findings == ()


def test_a_norm_that_runs_on_running_statistics_in_training_too_is_let_pass():
    class Frozen(nn.InstanceNorm2d):
        def train(self, mode: bool = True) -> Frozen:
            return super().train(False)

    model = image_to_image(lambda width: Frozen(width, track_running_stats=True))
    assert vs.check(model, shape=(1, 14, 14), select=["VS209"]).findings == ()
    assert vs.check(model, select=["VS209"]).findings == ()
