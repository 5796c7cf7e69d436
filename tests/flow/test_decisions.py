"""Choices that Python takes from random numbers, and noise that is drawn elsewhere than where it acts."""

from __future__ import annotations

import random
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from varshift.flow import NoiseSite, capture


class Encoder(nn.Module):
    """Layer drop as in speech models: each layer has a number in both modes, which is read in training."""

    def __init__(self, rate: float, layers: int = 3) -> None:
        super().__init__()
        self.rate = rate
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            drawn = torch.rand([])
            if not (self.training and drawn < self.rate):  # layer drop
                x = x + layer(x)
        return x


class Network(nn.Module):
    def __init__(self, rate: float) -> None:
        super().__init__()
        self.first, self.encoder, self.norm = nn.Linear(4, 4), Encoder(rate), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.encoder(self.first(x)))


def _names(sites: tuple[NoiseSite, ...]) -> list[str]:
    return [str(site.id) for site in sites]


def test_layer_drop_is_a_site_of_the_module_that_decides(line_of) -> None:
    captured = capture(Network(0.3), torch.randn(2, 4))
    assert captured.train is not None
    assert captured.eval is not None
    sites = captured.train.decisions
    assert _names(sites) == ["encoder:layer_drop", "encoder:layer_drop#2", "encoder:layer_drop#3"]
    assert {site.cls for site in sites} == {"Encoder"}
    assert {site.rate for site in sites} == {0.3}
    assert {site.source for site in sites} == {line_of(Encoder, "layer drop")}
    assert [site.calls[-1].function for site in sites] == ["Encoder.forward"] * 3
    assert [site.drawn[0].calls[-1].line for site in sites] == [sites[0].calls[-1].line - 1] * 3
    assert captured.train.noises == ()
    assert captured.eval.decisions == ()
    assert captured.train.by_chance
    assert not captured.eval.by_chance
    assert any("read as a Python number" in limit for limit in captured.train.limits)


def test_names_of_decisions_do_not_depend_on_what_was_decided() -> None:
    model = Network(0.5)
    names = set()
    for seed in range(8):
        torch.manual_seed(seed)
        captured = capture(model, torch.randn(2, 4))
        assert captured.train is not None
        names.add(tuple(_names(captured.train.decisions)))
    assert len(names) == 1


def test_a_rate_of_zero_decides_nothing() -> None:
    train = capture(Network(0.0), torch.randn(2, 4)).train
    assert train is not None
    assert train.decisions == ()
    assert not train.by_chance
    assert train.limits == ()


class Choosing(nn.Module):
    """Reads random numbers in different ways, never to any effect."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("threshold", torch.tensor(0.25))

    def forward(self, x: Tensor) -> Tensor:
        keep = torch.rand(3)
        _ = bool(keep[0] > 0.1), bool(keep[1] > 0.0)  # the second cannot turn out otherwise
        _ = bool(torch.rand(()) <= self.threshold)
        _ = torch.rand(1).item() < 0.2
        _ = bool(torch.bernoulli(torch.tensor(0.4)))
        _ = torch.randint(5, ()).item()
        _ = bool((torch.rand(64) < 0.5).any())
        chosen = torch.rand(()) < 0.6
        _ = bool(chosen), bool(chosen)
        return self.layer(x)


def test_rates_of_decisions_are_told_where_a_number_is_compared() -> None:
    train = capture(Choosing(), torch.randn(2, 4)).train
    assert train is not None
    assert [(str(site.id), site.rate) for site in train.decisions] == [
        (":layer_drop", 0.1),
        (":layer_drop#3", 0.25),
        (":layer_drop#4", None),
        (":layer_drop#5", None),
        (":decision", None),
        (":decision#2", None),
        (":layer_drop#6", 0.6),
    ]


class PythonChance(nn.Module):
    def __init__(self, draw) -> None:
        super().__init__()
        self.draw, self.layers = draw, nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            if not self.training or self.draw() > 0.3:  # drawn by Python
                x = layer(x)
        return x


def _half() -> float:
    return random.random() / 2


DRAWS = {
    "random": (random.random, "layer_drop", "PythonChance.forward"),
    "uniform": (lambda: random.uniform(0, 1), "layer_drop", "<lambda>"),
    "helper": (_half, "layer_drop", "_half"),
    "randint": (lambda: random.randint(0, 3), "decision", "<lambda>"),
    "choice": (lambda: random.choice([0.1, 0.5]), "decision", "<lambda>"),
}


@pytest.mark.parametrize("name", list(DRAWS))
def test_numbers_that_python_draws_are_one_site_for_each_place(name: str) -> None:
    draw, kind, function = DRAWS[name]
    before = sys.getprofile()
    captured = capture(PythonChance(draw), torch.randn(2, 4))
    assert captured.train is not None
    assert captured.eval is not None
    (site,) = captured.train.decisions
    assert (site.id.module, site.kind, site.rate, site.id.ordinal) == ("", kind, None, 1)
    assert site.calls[-1].function == function
    assert "PythonChance.forward" in [call.function for call in site.calls]
    assert site.drawn == ()
    assert captured.eval.decisions == ()
    assert sys.getprofile() is before


def test_numbers_of_numpy_are_a_limit_without_a_site() -> None:
    train = capture(PythonChance(np.random.rand), torch.randn(2, 4)).train
    assert train is not None
    assert train.decisions == ()
    assert train.by_chance


def test_a_profiler_at_work_is_left_alone() -> None:
    def profiler(*_: object) -> None:
        pass

    sys.setprofile(profiler)
    try:
        train = capture(PythonChance(random.random), torch.randn(2, 4)).train
        left = sys.getprofile()
    finally:
        sys.setprofile(None)
    assert left is profiler
    assert train is not None
    assert train.decisions == ()
    assert train.by_chance


class Bank(nn.Module):
    """A mask that a submodule draws once and every step multiplies with, as recurrent cells have it."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.cell, self.norm = nn.Dropout(0.25), Cell(), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        mask = self.drop(torch.ones(1, 4))  # drawn
        for _ in range(2):
            x = self.cell(x, mask)
        return self.norm(F.dropout(x, 0.5, self.training))


class Cell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return torch.tanh(self.linear(x)) * mask


def test_a_site_knows_where_its_noise_is_drawn(line_of) -> None:
    train = capture(Bank(), torch.randn(2, 4)).train
    assert train is not None
    first, second, own = train.noises
    for site in (first, second):
        assert (site.name, site.rate) == ("cell", 0.25)
        (draw,) = site.drawn
        assert (draw.name, draw.cls) == ("drop", "Dropout")
        assert train.nodes[draw.node].op == "dropout"
        assert draw.node < site.node
        assert draw.calls[-1].source == line_of(Bank, "drawn")
        assert (draw.calls[-1].module, draw.calls[-1].function) == ("", "Bank.forward")
    (draw,) = own.drawn
    assert (draw.name, draw.node, draw.calls) == ("", own.node, own.calls)


class Positions(nn.Module):
    """Dropout on constants that are added to the signal in another module, as relative positions are."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.layer = nn.Dropout(0.2), Attending()

    def forward(self, x: Tensor) -> Tensor:
        positions = torch.arange(4.0).sin()
        return self.layer(x, self.drop(positions))


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        return self.linear(x) + self.linear(positions)


def test_dropout_on_positions_is_drawn_by_its_module() -> None:
    train = capture(Positions(), torch.randn(2, 4)).train
    assert train is not None
    (site,) = train.noises
    assert site.name == "layer"
    assert [draw.name for draw in site.drawn] == ["drop"]


class TwoMasks(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        rows, columns = torch.rand(x.shape[0], 1) < 0.9, torch.rand(1, x.shape[1]) < 0.9
        return x * (rows & columns)


def test_a_mask_of_two_draws_names_both() -> None:
    train = capture(TwoMasks(), torch.randn(8, 4)).train
    assert train is not None
    (site,) = train.noises
    assert [train.nodes[draw.node].op for draw in site.drawn] == ["rand", "rand"]
