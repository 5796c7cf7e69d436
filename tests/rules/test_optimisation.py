"""VS501: weight decay of norms and of weights whose scale does not matter, biases in front of norms."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import varshift as vs
from varshift.optim import WeightRescaling, find_scale_invariant


def convolutions(*, bias: bool = False) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=bias), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, bias=bias), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip


class Residual(nn.Module):
    """Its second weight is added to another signal: its scale matters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm1 = nn.Linear(12, 12), nn.LayerNorm(12)
        self.inner, self.norm2, self.outer = nn.Linear(12, 12), nn.LayerNorm(12), nn.Linear(12, 12)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.stem(x))
        return self.head(x + self.outer(self.norm2(self.inner(x)).relu()))


def decays(model: nn.Module, optimizer, **inputs) -> dict[str, vs.Finding]:
    """The findings by the first parameter that they name."""
    inputs.setdefault("shape", (3, 8, 8))
    report = vs.check(model, **inputs, optimizer=optimizer, select=["VS501"])
    assert report.limits == ()
    assert {one.severity for one in report.findings} <= {"advice"}
    return {one.evidence["first"]: one for one in report.findings}


def planned(model: nn.Module, **settings) -> torch.optim.Optimizer:
    norms = [
        p for m in model.modules() if isinstance(m, (nn.BatchNorm2d, nn.LayerNorm)) for p in m.parameters()
    ]
    others = [p for p in model.parameters() if all(p is not one for one in norms)]
    groups = [{"params": norms, "weight_decay": 0.0}, {"params": others}]
    return torch.optim.SGD(groups, 0.1, weight_decay=1e-3, **settings)


def test_one_group_for_everything_is_advice_in_three_parts():
    model = convolutions(bias=True)
    found = decays(model, torch.optim.SGD(model.parameters(), 0.1, weight_decay=1e-3))
    assert list(found) == ["1.weight", "0.weight", "0.bias"]
    assert found["1.weight"].evidence["parameters"] == 4
    assert found["0.weight"].evidence["parameters"] == 2
    assert found["0.weight"].evidence["angle"] == pytest.approx((2 * 0.1 * 1e-3) ** 0.5)
    assert [site.id.module for site in found["0.bias"].sites] == ["0", "3"]


def test_a_plan_is_let_pass():
    model = convolutions()
    optimizer = planned(model)
    torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)
    assert decays(model, optimizer) == {}
    constant = planned(model)
    assert list(decays(model, constant)) == ["0.weight"]
    handle = WeightRescaling(find_scale_invariant(model, torch.randn(16, 3, 8, 8))).attach(constant)
    assert decays(model, constant) == {}
    handle.remove()
    assert list(decays(model, constant)) == ["0.weight"]


def test_no_decay_and_no_norms_are_let_pass():
    model = convolutions()
    assert decays(model, torch.optim.Adam(model.parameters(), 1e-3)) == {}
    plain = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    assert decays(plain, torch.optim.SGD(plain.parameters(), 0.1, weight_decay=0.1), shape=(6,)) == {}


def test_weights_whose_scale_matters_and_other_norms():
    model = Residual()
    found = decays(model, torch.optim.AdamW(model.parameters(), 1e-3), shape=(12,))
    assert found["norm1.weight"].evidence["parameters"] == 4
    assert {site.id.module for site in found["stem.weight"].sites} == {"stem", "inner"}


def test_another_decay_for_weights_without_a_scale_is_a_plan():
    model = convolutions()
    free = [model[0].weight, model[3].weight]
    groups = [{"params": free, "weight_decay": 1e-3}, {"params": model[8].parameters(), "weight_decay": 0.0}]
    assert decays(model, torch.optim.SGD(groups, 0.1)) == {}


def test_nothing_is_touched_and_nothing_said_without_an_optimiser():
    model = convolutions(bias=True)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, weight_decay=1e-3, momentum=0.9)
    model(torch.randn(4, 3, 8, 8)).sum().backward()
    optimizer.step()
    before, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    gradients = [p.grad.clone() for p in model.parameters()]
    noise = torch.get_rng_state()
    decays(model, optimizer)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(p.grad, one) for p, one in zip(model.parameters(), gradients, strict=True))
    assert str(optimizer.state_dict()) == str(state)
    assert torch.equal(noise, torch.get_rng_state())
    assert vs.check(model, shape=(3, 8, 8), select=["VS501"]).findings == ()


def test_an_optimiser_of_another_model_and_something_else_are_named():
    model = convolutions()
    other = torch.optim.SGD(convolutions().parameters(), 0.1)
    report = vs.check(model, shape=(3, 8, 8), optimizer=other, select=["VS501"])
    (run,) = [one for one in report.rules if one.code == "VS501"]
    assert run.reason == "needs optimizer (it holds no parameter of the model that is trained)"
    with pytest.raises(vs.VarshiftError, match=r"optimizer is a list"):
        vs.check(model, shape=(3, 8, 8), optimizer=list(model.parameters()))
