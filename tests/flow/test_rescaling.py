"""Whether noise keeps the mean, in every way of writing it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from varshift.flow import capture

KEEP = 0.6


class Layer(nn.Module):
    def __init__(self, train: Callable[[Tensor], Tensor], deployed: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.noisy, self.deployed = train, deployed

    def forward(self, x: Tensor) -> Tensor:
        return self.noisy(x) if self.training else self.deployed(x)


def same(x: Tensor) -> Tensor:
    return x


def mask(x: Tensor) -> Tensor:
    return torch.bernoulli(torch.full_like(x, KEEP))


def gate(x: Tensor) -> Tensor:
    return torch.floor(KEEP + torch.rand(len(x), 1))


def assigned(x: Tensor) -> Tensor:
    x = x.clone()
    x[torch.rand_like(x) > KEEP] = 0
    return x


def renormalised(x: Tensor) -> Tensor:
    kept = mask(x)
    return x * kept * kept.numel() / kept.sum()


def factor(train, deployed=same) -> tuple[str, float | None]:
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), Layer(train, deployed), nn.Linear(16, 3))
    flow = capture(net, torch.randn(16, 8)).train
    assert flow is not None
    (site,) = flow.noises
    return site.kind, site.mean_factor


@pytest.mark.parametrize(
    "train",
    [
        lambda x: x * mask(x) / KEEP,
        lambda x: x * (mask(x) / KEEP),
        lambda x: x * (1 / KEEP) * mask(x),
        lambda x: x.div(KEEP) * mask(x),
        lambda x: x.clone().div_(KEEP).mul_(mask(x)),
        lambda x: torch.where(torch.rand_like(x) < KEEP, x / KEEP, torch.zeros_like(x)),
        lambda x: x.masked_fill(torch.rand_like(x) > KEEP, 0.0) / KEEP,
        lambda x: x * x.new_empty(x.shape).bernoulli_(KEEP).div_(KEEP),
        lambda x: x.div(KEEP) * gate(x),
        lambda x: x * F.dropout(torch.ones_like(x), 1 - KEEP),
        lambda x: x * (1 + 0.3 * torch.randn_like(x)),
        lambda x: x + x * 0.3 * torch.randn_like(x),
        renormalised,
    ],
)
def test_noise_that_keeps_the_mean(train):
    assert factor(train)[1] == pytest.approx(1.0, abs=1e-5)


def test_an_assignment_to_masked_elements_is_sampled():
    assert factor(lambda x: assigned(x) / KEEP)[1] == 1.0
    assert factor(assigned)[1] == pytest.approx(KEEP, abs=0.03)


@pytest.mark.parametrize(
    ("train", "kind", "mean"),
    [
        (lambda x: x * (torch.rand_like(x) < KEEP), "dropout", KEEP),
        (lambda x: x * mask(x), "dropout", KEEP),
        (lambda x: torch.where(torch.rand_like(x) < KEEP, x, torch.zeros_like(x)), "dropout", KEEP),
        (lambda x: x.masked_fill(torch.rand_like(x) > KEEP, 0.0), "dropout", KEEP),
        (lambda x: x * gate(x), "drop_path", KEEP),
        (lambda x: x * torch.bernoulli(torch.full_like(x, 0.4)) / KEEP, "dropout", 0.4 / KEEP),
        (lambda x: x * (1.2 + 0.3 * torch.randn_like(x)), "gaussian", 1.2),
        (lambda x: x * torch.rand_like(x), "uniform", 0.5),
    ],
)
def test_noise_that_moves_the_mean(train, kind, mean):
    found, value = factor(train)
    assert found == kind
    assert value == pytest.approx(mean, rel=1e-5)


@pytest.mark.parametrize(
    ("train", "deployed", "mean"),
    [
        (lambda x: x * mask(x), lambda x: x * KEEP, 1.0),
        (lambda x: x * mask(x), lambda x: x / (1 / KEEP), 1.0),
        (lambda x: x * mask(x) / KEEP * 0.5, lambda x: x * 0.5, 1.0),
        (lambda x: x * mask(x) * (0.5 / KEEP), lambda x: x * 0.5, 1.0),
        (lambda x: x * mask(x) * 0.5, lambda x: x * 0.5, KEEP),
        (lambda x: x * mask(x), lambda x: x * 0.9, KEEP / 0.9),
    ],
)
def test_what_evaluation_multiplies_with_counts(train, deployed, mean):
    assert factor(train, deployed)[1] == pytest.approx(mean, rel=1e-4)


@pytest.mark.parametrize(
    "train",
    [
        lambda x: F.dropout(x, 0.4),
        lambda x: x + torch.randn_like(x),
        lambda x: x[torch.randperm(len(x))],
        lambda x: torch.bernoulli(x.sigmoid()),
    ],
)
def test_where_there_is_no_factor_or_an_operator_keeps_the_mean_nothing_is_said(train):
    assert factor(train)[1] is None


def test_weights_that_are_dropped():
    class Connect(nn.Linear):
        divide = False

        def forward(self, x: Tensor) -> Tensor:
            weight = self.weight
            if self.training:
                weight = weight * (torch.rand_like(weight) < KEEP)
                weight = weight / KEEP if self.divide else weight
            return F.linear(x, weight, self.bias)

    for divide, mean in ((False, KEEP), (True, 1.0)):
        net = nn.Sequential(Connect(8, 4), nn.ReLU(), nn.Linear(4, 2))
        net[0].divide = divide
        flow = capture(net, torch.randn(16, 8)).train
        assert flow is not None
        (site,) = flow.noises
        assert site.kind == "weight_dropout"
        assert site.mean_factor == pytest.approx(mean, rel=1e-5)
