"""VS402 with a training step: what moves and what does not, whatever the flags say."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import varshift as vs


class Tuned(nn.Module):
    """A backbone and a head."""

    def __init__(self, images: bool) -> None:
        super().__init__()
        self.images = images
        self.backbone = (
            nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout2d(0.1))
            if images
            else nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.1))
        )
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.backbone(x.view(-1, 1, 2, 4) if self.images else x)
        return self.head(x.mean((2, 3)) if self.images else x)


def batches() -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(192, 8, generator=generator)
    return DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), 32, shuffle=True)


def stepping(model: nn.Module, parameters, prepare):
    optimizer = torch.optim.Adam(parameters, 1e-2)

    def step(net, batch):
        prepare(net)
        optimizer.zero_grad()
        F.cross_entropy(net(batch[0]), batch[1]).backward()
        optimizer.step()

    return step


def train(net):
    net.train()


def hold(net):
    net.train()
    net.backbone.eval()


def evaluate(net):
    net.eval()


def found(model, step, **settings) -> vs.Finding | None:
    torch.manual_seed(0)
    for batch in batches():
        step(model, batch)
    model.eval()
    report = vs.check(model, batches(), step=step, select=["VS402"], **settings)
    assert {run.name: run.ran for run in report.evidence}["step"], report.limits
    return next(iter(report.findings), None)


@pytest.mark.parametrize("frozen", [True, False], ids=["no gradients", "in no optimizer"])
@pytest.mark.parametrize("images", [False, True], ids=["vectors", "images"])
def test_statistics_that_move_before_parameters_that_do_not(images, frozen):
    torch.manual_seed(0)
    model = Tuned(images)
    model.backbone.requires_grad_(not frozen)
    finding = found(model, stepping(model, model.head.parameters(), train))
    assert finding is not None
    assert (finding.severity, finding.confidence) == ("warning", "certain")
    assert finding.evidence["reason"] == "awake"
    assert [site.id.module for site in finding.sites] == ["backbone.1"]


@pytest.mark.parametrize("images", [False, True], ids=["vectors", "images"])
def test_a_backbone_that_the_step_holds_and_one_that_trains_are_let_pass(images):
    torch.manual_seed(0)
    model = Tuned(images)
    model.backbone.requires_grad_(False)
    assert found(model, stepping(model, model.head.parameters(), hold)) is None
    model = Tuned(images)
    assert found(model, stepping(model, model.parameters(), train)) is None


@pytest.mark.parametrize("images", [False, True], ids=["vectors", "images"])
def test_a_step_in_evaluation_mode(images):
    torch.manual_seed(0)
    model = Tuned(images)
    finding = found(model, stepping(model, model.parameters(), evaluate))
    assert finding is not None
    assert (finding.severity, finding.evidence["reason"]) == ("warning", "asleep")
    assert finding.evidence["quiet_noise"] == 1
