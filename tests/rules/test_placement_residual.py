"""VS103 and VS104: dropout in the branches of residual networks, and after global pooling."""

from __future__ import annotations

import dataclasses

import pytest
import torch.nn.functional as F
from torch import Tensor, nn

import varshift as vs
from varshift.rules._causes import settle


class PreActivation(nn.Module):
    """norm, ReLU, weight, norm, ReLU, weight, with noise at one of the places of the paper's dossier."""

    def __init__(self, place: str, width: int = 8, out: int = 8, noise: nn.Module | None = None) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(width), nn.Conv2d(width, out, 3, padding=1)
        self.norm2, self.conv2 = nn.BatchNorm2d(out), nn.Conv2d(out, out, 3, padding=1)
        self.place, self.noise = place, noise or nn.Dropout(0.3)
        self.short = nn.Conv2d(width, out, 1) if width != out else nn.Identity()

    def at(self, place: str, x: Tensor) -> Tensor:
        return self.noise(x) if place == self.place else x

    def forward(self, x: Tensor) -> Tensor:
        h = self.at("B", self.norm1(self.at("A", x)))
        h = self.at("D", self.conv1(self.at("C", F.relu(h))))
        h = self.at("F", F.relu(self.at("E", self.norm2(h))))
        return self.at("T", self.short(x) + self.at("G", self.conv2(h)))


class Classic(nn.Module):
    """weight, norm, ReLU, weight, norm: a branch without a slot."""

    def __init__(self, place: str, width: int = 8, out: int = 8) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, out, 3, padding=1), nn.BatchNorm2d(out)
        self.conv2, self.norm2 = nn.Conv2d(out, out, 3, padding=1), nn.BatchNorm2d(out)
        self.place, self.noise = place, nn.Dropout2d(0.3)
        shortcut = (nn.Conv2d(width, out, 1), nn.BatchNorm2d(out))
        self.short = nn.Sequential(*shortcut) if width != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm1(self.conv1(x)))
        h = self.norm2(self.conv2(self.noise(h) if self.place == "C" else h))
        h = self.noise(h) if self.place == "G" else h
        return F.relu(h + self.short(x))


class Attention(nn.Module):
    """A transformer's branch: no norm that keeps statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.inner, self.outer = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16)
        self.noise = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.noise(self.outer(F.gelu(self.inner(self.norm(x)))))


def network(*blocks: nn.Module, out: int = 8, head: tuple[nn.Module, ...] = ()) -> nn.Module:
    pooled = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), *head)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), *blocks, nn.BatchNorm2d(out), nn.ReLU(), *pooled, nn.Linear(out, 3)
    )


def outside(model: nn.Module, **settings) -> list[vs.Finding]:
    settings.setdefault("shape", (3, 8, 8))
    return list(vs.check(model, select=["VS103"], **settings).findings)


@pytest.mark.parametrize("out", [8, 16])
@pytest.mark.parametrize(
    ("place", "where"),
    [
        ("A", "before-norm"),
        ("B", "before-norm"),
        ("C", "before-norm"),
        ("D", "before-norm"),
        ("E", None),
        ("F", None),
        ("G", "after-weight"),
        ("T", None),  # on the trunk: no branch
    ],
)
def test_places_of_a_pre_activation_block(place, where, out):
    found = outside(network(PreActivation(place, 8, out), out=out))
    assert [one.evidence["place"] for one in found] == ([where] if where else [])
    for finding in found:
        assert (finding.severity, finding.confidence) == ("advice", "certain")
        assert finding.evidence["has_slot"]
        assert finding.cures[0].options["to"] == "branch-slot"


@pytest.mark.parametrize("out", [8, 16])
@pytest.mark.parametrize(("place", "where"), [("C", "before-norm"), ("G", "after-weight")])
def test_a_branch_that_ends_in_a_norm_has_no_slot(place, where, out):
    (finding,) = outside(network(Classic(place, 8, out), out=out))
    assert finding.evidence["place"] == where
    assert not finding.evidence["has_slot"]
    assert "ends in a norm" in finding.message
    assert finding.cures[0].options["to"] == "head"


def test_places_of_one_kind_are_one_finding():
    found = outside(network(PreActivation("G"), PreActivation("G"), PreActivation("D"), PreActivation("F")))
    assert sorted(len(one.sites) for one in found) == [1, 2]


@pytest.mark.parametrize(
    "model",
    [
        lambda: network(PreActivation("D", noise=nn.Dropout(0.0))),
        lambda: network(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.Dropout(0.3), nn.BatchNorm2d(8))),
        lambda: network(head=(nn.Dropout(0.3),)),
    ],
)
def test_other_networks_are_let_pass(model):
    assert outside(model()) == []


def test_transformers_are_let_pass():
    assert outside(nn.Sequential(Attention(), Attention(), nn.Linear(16, 3)), shape=(5, 16)) == []


@pytest.mark.parametrize(("severity", "left"), [("error", 0), ("warning", 0), ("advice", 1)])
@pytest.mark.parametrize("code", ["VS101", "VS102"])
def test_where_it_costs_something_the_norm_that_it_reaches_is_what_is_named(code, severity, left):
    (place,) = outside(network(PreActivation("D")))
    reaching = dataclasses.replace(place, code=code, severity=severity)
    assert [one.code for one in settle((reaching, place))].count("VS103") == left


def after_pooling(model: nn.Module, *data, **settings) -> list[vs.Finding]:
    return list(vs.check(model, *data, select=["VS104"], **settings).findings)


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


@pytest.mark.parametrize(
    "pooling", [(nn.AdaptiveAvgPool2d(1), nn.Flatten()), (nn.AvgPool2d(8), nn.Flatten()), (Mean(),)]
)
def test_elementwise_dropout_after_global_pooling_is_advice(pooling):
    stem = (nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
    (finding,) = after_pooling(
        nn.Sequential(*stem, *pooling, nn.Dropout(0.5), nn.Linear(8, 3)), shape=(3, 8, 8)
    )
    assert (finding.severity, finding.evidence["positions"]) == ("advice", 64)
    for noise in (nn.Dropout(0.0), nn.Identity()):
        assert after_pooling(nn.Sequential(*stem, *pooling, noise, nn.Linear(8, 3)), shape=(3, 8, 8)) == []


@pytest.mark.parametrize(
    "layers",
    [
        (nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)),
        (nn.AdaptiveAvgPool2d(1), nn.Dropout2d(0.5), nn.Flatten(), nn.Linear(8, 3)),
        (nn.AdaptiveAvgPool2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(128, 3)),
        (nn.Flatten(), nn.Dropout(0.5), nn.Linear(512, 3)),
        (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 3)),
    ],
)
def test_other_heads_are_let_pass(layers):
    assert (
        after_pooling(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), *layers), shape=(3, 8, 8)) == []
    )


@pytest.mark.parametrize(("noise", "expected"), [(-0.7, 1), (-0.2, 0), (0.2, 0)])
def test_with_a_loss_it_is_said_where_the_noise_makes_up_half_of_it(build, noise, expected):
    shapes = ((8, 4, 6, 6), (8, 4, 1, 1), (8, 4), (8, 4))
    kinds = (("weight", None), ("pool", "mean"), ("view", None), ("noise", None))
    nodes = [
        build.node(index, kind, (index - 1,) if index else (), op, shape=shapes[index])
        for index, (kind, op) in enumerate(kinds)
    ]
    flow = build.flow([build.noise(node=3)], nodes=nodes)
    known = build.evidence(train=flow, measurement=build.measurement(gap=build.gap_of(noise=noise)))
    found = build.findings("VS104", known)
    assert len(found) == expected
    assert all("70%" in one.message for one in found)
