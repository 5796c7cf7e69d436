"""Layers that Python skips by chance: the attribute that says how often is set."""

import random

import pytest
import torch
from operation import operate
from torch import nn

from varshift import SiteId
from varshift.fixes import Refused

X = torch.randn(8, 6)


class Encoder(nn.Module):
    """Layers that training skips by chance, with dropout in each."""

    def __init__(self, drawn_by):
        super().__init__()
        self.layerdrop, self.drawn_by = 0.3, drawn_by
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.1)) for _ in range(4))

    def forward(self, x):
        for layer in self.layers:
            drawn = torch.rand([]) if self.drawn_by == "torch" else random.random()
            if not (self.training and drawn < self.layerdrop):
                x = x + layer(x)
        return x


def test_layers_are_no_longer_skipped():
    torch.manual_seed(0)
    operation = operate(Encoder("torch"), X, "remove-noise", SiteId("", "layer_drop"))
    assert operation.network.layerdrop == 0.0
    assert operation.proof.exact, operation.proof.unexpected
    assert operation.after.train.decisions == ()
    assert len(operation.noises) == 4
    assert {change.method for change in operation.changes} == {"attribute"}


def test_other_noise_is_nothing_for_a_choice():
    torch.manual_seed(0)
    with pytest.raises(Refused, match="layer_drop"):
        operate(Encoder("torch"), X, "swap-noise", SiteId("", "layer_drop"))


def test_numbers_that_python_draws_say_no_rate():
    random.seed(0)
    with pytest.raises(Refused, match="where the network is built"):
        operate(Encoder("python"), X, "remove-noise", SiteId("", "layer_drop"))
