from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from varshift.flow import capture

METHODS = ["exported", "recorded"]


def gate(x: Tensor, training: bool, rate: float = 0.2) -> Tensor:
    if not training:
        return x
    mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(1 - rate)
    return x * mask / (1 - rate)


def branch(width: int = 4) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width, width, 1), nn.ReLU(), nn.Conv2d(width, width, 1), nn.BatchNorm2d(width)
    )


class Unit(nn.Module):
    """A residual unit; where its drop path sits is decided by a function."""

    def __init__(self, rule) -> None:
        super().__init__()
        self.rule = rule
        self.branch = branch()
        self.shortcut = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
        self.scale = nn.Parameter(torch.ones(4, 1, 1))

    def drop(self, x: Tensor) -> Tensor:
        return gate(x, self.training)

    def forward(self, x: Tensor) -> Tensor:
        return self.rule(self, x)


def discarded(unit: Unit, x: Tensor) -> Tensor:
    y = unit.branch(x)
    unit.drop(y)
    return F.relu(x + y)


def concatenated(unit: Unit, x: Tensor) -> Tensor:
    return torch.cat([x, unit.drop(unit.branch(x))], 1)[:, ::2]


def in_place(unit: Unit, x: Tensor) -> Tensor:
    y = unit.branch(x)
    y += x
    return y.mul_(torch.empty(x.shape[0], 1, 1, 1).bernoulli_(0.8))


RULES = {
    "after the branch": (lambda u, x: x + u.drop(u.branch(x)), "branch"),
    "after the branch, sum reversed": (lambda u, x: u.drop(u.branch(x)) + x, "branch"),
    "scaled afterwards": (lambda u, x: F.relu(x + u.scale * u.drop(u.branch(x))), "branch"),
    "before the branch": (lambda u, x: x + u.branch(u.drop(x)), "branch"),
    "pooled branch": (lambda u, x: x + u.drop(F.avg_pool2d(x, 3, 1, 1) - x), "branch"),
    "projected shortcut": (lambda u, x: u.shortcut(x) + u.drop(u.branch(x)), "branch"),
    "concatenated": (concatenated, "branch"),
    "identity": (lambda u, x: u.drop(x) + u.branch(x), "identity"),
    "identity, activated": (lambda u, x: F.relu(u.drop(x)) + u.branch(x), "identity"),
    "projection dropped": (lambda u, x: u.drop(u.shortcut(x)) + u.branch(x), "identity"),
    "after the sum": (lambda u, x: u.drop(x + u.branch(x)), "everything"),
    "after the sum, in place": (in_place, "everything"),
    "before the fork": (lambda u, x: (lambda y: y + u.branch(y))(u.drop(x)), "everything"),
    "no shortcut at all": (lambda u, x: u.drop(u.branch(x)), "everything"),
    "discarded": (discarded, "nothing"),
}


@pytest.mark.parametrize("method", METHODS)
def test_what_a_drop_path_drops(captured, method) -> None:
    class Network(nn.Module):
        """Independent units in a row would hide each other's shortcuts: they run side by side."""

        def __init__(self) -> None:
            super().__init__()
            self.stems = nn.ModuleList(nn.Conv2d(3, 4, 1) for _ in RULES)
            self.units = nn.ModuleList(nn.Sequential(Unit(rule)) for rule, _ in RULES.values())
            self.heads = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in RULES)

        def forward(self, x: Tensor) -> list[Tensor]:
            chains = zip(self.stems, self.units, self.heads, strict=True)
            return [head(unit(stem(x))) for stem, unit, head in chains]

    sites = captured(Network(), 2, 3, 6, 6, method=method).train.noises
    found = dict(zip(RULES, sites, strict=True))
    assert {site.kind for site in sites} == {"drop_path"}
    assert {site.rate for site in sites} == {0.2}
    assert {name: site.drops for name, site in found.items()} == {
        name: answer for name, (_, answer) in RULES.items()
    }


class Chain(nn.Module):
    """A whole network of units of one kind."""

    def __init__(self, rule, depth: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.units = nn.Sequential(*(Unit(rule) for _ in range(depth)))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.units(self.stem(x)).mean((2, 3)))


@pytest.mark.parametrize("name", RULES)
def test_answers_hold_in_a_deep_network(captured, name) -> None:
    rule, answer = RULES[name]
    sites = captured(Chain(rule), 2, 3, 6, 6).train.noises
    assert [site.drops for site in sites] == [answer] * 4


def test_parallel_branches_with_one_norm(captured) -> None:
    class Parallel(nn.Module):
        """``x + drop(f(norm(x))) + drop(g(norm(x)))``."""

        def __init__(self) -> None:
            super().__init__()
            self.norm, self.first, self.second = nn.LayerNorm(4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(x)
            x = x + gate(self.first(y), self.training)
            return x + gate(self.second(y), self.training)

    net = nn.Sequential(Parallel(), Parallel())
    assert [site.drops for site in captured(net, 2, 5, 4).train.noises] == ["branch"] * 4


@pytest.mark.parametrize(("late", "answer"), [(False, "branch"), (True, None)])
def test_gate_on_one_of_two_inputs(late, answer) -> None:
    class Streams(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            y = gate(self.second(y), self.training)
            return self.first(x) + (self.third(y) if late else y)

    flow = capture(Streams(), (torch.rand(2, 4), torch.rand(2, 4))).train
    assert flow is not None
    assert [site.drops for site in flow.noises] == [answer]


def test_other_noise_has_no_answer(captured) -> None:
    (site,) = captured(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)), 2, 4).train.noises
    assert site.drops is None
