from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

METHODS = ["exported", "recorded"]


def drop(x: Tensor, training: bool) -> Tensor:
    if not training:
        return x
    mask = torch.rand_like(x) > 0.5
    return x * mask  # helper


class Leaf(nn.Module):
    """A module that is there for its noise only."""

    def forward(self, x: Tensor) -> Tensor:
        return drop(x, self.training)


class Weighted(nn.Module):
    """No children, but more than noise: its own line says more than the caller's."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(4))

    def forward(self, x: Tensor) -> Tensor:
        x = F.linear(x, self.weight)
        return F.dropout(x, 0.5, self.training)  # weighted


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.leaf = Leaf()
        self.weighted = Weighted()
        self.seq = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.BatchNorm1d(4))
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(x)  # module
        x = self.leaf(
            x,
        )  # several lines
        x = F.dropout(x, 0.5, self.training)  # functional
        x = drop(x, self.training)  # calls helper
        x = self.weighted(x)
        x = self.seq(x)  # sequential
        return self.norm(x)  # norm


@pytest.mark.parametrize("method", METHODS)
def test_noise_is_reported_at_the_line_a_user_would_point_to(captured, line_of, method) -> None:
    flow = captured(Network(), 3, 4, method=method).train
    expected = [
        ("drop", line_of(Network, "module")),
        ("leaf", None),
        ("", line_of(Network, "functional")),
        # Exporters keep the lines of forwards only.
        ("", line_of(drop, "helper") if method == "recorded" else line_of(Network, "calls helper")),
        ("weighted", line_of(Weighted, "weighted")),
        ("seq.1", line_of(Network, "sequential")),
    ]
    found = [(site.name, site.source) for site in flow.noises]
    assert [name for name, _ in found] == [name for name, _ in expected]
    # A call over several lines is reported at one of them.
    last, leaf = line_of(Network, "several lines"), found[1][1]
    assert leaf.file == last.file
    assert last.line - 2 <= leaf.line <= last.line
    assert [pair for pair in found if pair[0] != "leaf"] == [pair for pair in expected if pair[0] != "leaf"]


@pytest.mark.parametrize("method", METHODS)
def test_norms_are_reported_at_the_line_that_calls_them(captured, line_of, method) -> None:
    flow = captured(Network(), 3, 4, method=method).eval
    assert [(norm.name, norm.source) for norm in flow.norms] == [
        ("seq.2", line_of(Network, "sequential")),
        ("norm", line_of(Network, "norm")),
    ]


class Root(nn.Module):
    """A root without children is reported at its own line: nobody of interest calls it."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5)  # root


@pytest.mark.parametrize("method", METHODS)
def test_root_module_is_reported_at_its_own_line(captured, line_of, method) -> None:
    (site,) = captured(Root(), 3, 4, method=method).eval.noises
    assert (site.name, site.cls, site.source) == ("", "Root", line_of(Root, "root"))
