"""VS402: frozen parameters whose statistics go on learning, and those that are held."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import varshift as vs


def dense() -> nn.Module:
    first = nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU())
    return nn.Sequential(*first, nn.Linear(16, 16), nn.BatchNorm1d(16))


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (3, 4)),
        nn.Conv1d(3, 16, 3),
        nn.BatchNorm1d(16, affine=False),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
    )


class Tuned(nn.Module):
    def __init__(self, backbone: nn.Module, held: bool = False) -> None:
        super().__init__()
        self.backbone, self.drop, self.held = backbone, nn.Dropout(0.1), held
        self.head = nn.Sequential(nn.BatchNorm1d(16), nn.Linear(16, 4))

    def train(self, mode: bool = True) -> Tuned:
        super().train(mode)
        if self.held:
            self.backbone.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.backbone(x)))


def data(shift: float = 0.0, count: int = 8) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(1)
    return [
        (torch.randn(32, 12, generator=draw) + shift, torch.randint(4, (32,), generator=draw))
        for _ in range(count)
    ]


def passes(model: nn.Module, batches: list[tuple[Tensor, Tensor]], times: int = 12) -> nn.Module:
    with torch.no_grad():
        for _ in range(times):
            for x, _ in batches:
                model(x)
    return model


def pretrained(build) -> nn.Module:
    torch.manual_seed(0)
    return passes(build().train(), data())


def tuned(build, held: bool = False) -> Tuned:
    model = Tuned(pretrained(build).requires_grad_(False), held)
    return passes(model.train(), data(2.0))


def found(model: nn.Module, **settings) -> list[vs.Finding]:
    return list(vs.check(model, data(2.0), select=["VS402"], **settings).findings)


@pytest.mark.parametrize("build", [dense, convolutions])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_statistics_that_followed_the_data_are_named(build, mode):
    model = tuned(build)
    getattr(model, mode)()
    (finding,) = found(model)
    assert finding.severity == "warning"
    assert all(site.id.module.startswith("backbone") for site in finding.sites)
    assert finding.evidence["reason"] == "awake"


@pytest.mark.parametrize("build", [dense, convolutions])
def test_a_reference_makes_it_an_error(build):
    original = nn.Sequential(pretrained(build), nn.Linear(16, 4))
    (finding,) = found(tuned(build), reference=original)
    assert (finding.severity, finding.confidence) == ("error", "certain")
    assert finding.evidence["reason"] == "drifted"


@pytest.mark.parametrize("build", [dense, convolutions])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_backbone_that_its_own_train_holds_is_sound(build, mode):
    model = tuned(build, held=True)
    getattr(model, mode)()
    assert found(model) == []


@pytest.mark.parametrize("build", [dense, convolutions])
def test_a_backbone_that_is_held_by_its_flag_is_advice_and_is_measured_as_it_is_trained(build):
    model = Tuned(pretrained(build).requires_grad_(False)).train()
    model.backbone.eval()
    passes(model, data(2.0))
    (finding,) = found(model)
    assert (finding.severity, finding.evidence["reason"]) == ("advice", "woken")
    report = vs.check(model, data(2.0), select=["VS202", "VS4"])
    assert {one.severity for one in report.findings} <= {"advice"}
    assert {one.code for one in report.findings} <= {"VS202", "VS402"}
    assert not any(cure.code == "recalibrate" for one in report.findings for cure in one.cures)
    assert not model.backbone.training


def test_a_frozen_model_for_deployment_and_norms_that_train_are_left_alone():
    model = tuned(dense)
    assert found(copy.deepcopy(model).requires_grad_(False)) == []
    scales = copy.deepcopy(model)
    for module in scales.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.requires_grad_(True)
    assert found(scales) == []
    first = copy.deepcopy(model)
    first.backbone[0].requires_grad_(True)  # upstream of all of them
    assert found(first) == []
    assert found(Tuned(pretrained(dense)).train()) == []


def test_a_frozen_backbone_at_work_on_other_data_says_nothing():
    model = Tuned(pretrained(dense).requires_grad_(False))
    passes(model.eval(), data(2.0))
    assert found(model) == []


def test_noise_inside_a_held_backbone_is_meant_to_be_off():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.Dropout(0.5))
    model = Tuned(passes(body.train(), data()).requires_grad_(False)).train()
    model.backbone.eval()
    assert vs.check(model, select=["VS401"]).findings == ()
    model.backbone.requires_grad_(True)
    assert "backbone.2" in {one.where for one in vs.check(model, select=["VS401"]).findings}
