"""Names of sites: one each, the same in both modes, for any batch and any rate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from varshift.flow import Capture, Flow, capture


def names(flow: Flow | None) -> list[str]:
    assert flow is not None
    return [str(site.id) for site in flow.noises]


def lines(result: Capture) -> dict[str, set[Any]]:
    """Lines of the sites of both modes by name."""
    found: dict[str, set[Any]] = {}
    for flow in (result.train, result.eval):
        assert flow is not None
        for site in flow.noises:
            found.setdefault(str(site.id), set()).add(site.source)
    return found


def by_hand(x: Tensor, p: float) -> Tensor:
    return x * (torch.rand_like(x) > p)


class Block(nn.Module):
    """Two calls in one line, one that never sleeps, noise by hand, attention, and a loop."""

    def __init__(self, rates: tuple[float, float, float] = (0.1, 0.2, 0.3)) -> None:
        super().__init__()
        self.rates = rates
        self.layer, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        first, second, third = self.rates
        x = F.dropout(x, first, self.training) + F.dropout(self.layer(x), second, self.training)
        if self.training:
            x = by_hand(x, 0.5)
        x = F.dropout(x, third)
        for _ in range(2):
            x = F.dropout(self.layer(x), second, self.training)
        weights = F.dropout(torch.softmax(x @ x.T, -1), 0.1, self.training)
        return self.norm(weights @ x)


EVERY = [
    "block:dropout",
    "block:dropout#2",
    "block:dropout#6",
    "block:dropout#3",
    "block:dropout#4",
    "block:dropout#5",
    "block:attention_dropout",
]


class Named(nn.Module):
    def __init__(self, rates: tuple[float, ...]) -> None:
        super().__init__()
        self.block = Block(rates or (0.1, 0.2, 0.3))  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


@pytest.mark.parametrize("batch", [2, 3, 8])
def test_names_are_the_same_for_any_batch_in_both_modes_and_again(batch) -> None:
    model = Named(())
    for _ in range(2):
        result = capture(model, torch.rand(batch, 4), samples=batch)
        assert names(result.train) == EVERY
        assert names(result.eval) == ["block:dropout#3"]
        assert [str(norm.id) for flow in (result.train, result.eval) if flow for norm in flow.norms] == [
            "block.norm:batch_norm"
        ] * 2


def test_a_rate_moves_no_name() -> None:
    none = capture(Named((0.0, 0.0, 0.3)), torch.rand(4, 4))
    assert names(none.train) == ["block:dropout#6", "block:dropout#3", "block:attention_dropout"]
    assert names(none.eval) == ["block:dropout#3"]
    some = capture(Named((0.0, 0.2, 0.0)), torch.rand(4, 4))
    assert names(some.train) == [name for name in EVERY if name not in ("block:dropout", "block:dropout#3")]
    assert names(some.eval) == []


def test_a_name_means_one_line_in_both_modes() -> None:
    class Skips(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                x = F.dropout(x, 0.1)
            x = F.dropout(x, 0.2)
            if not self.training:
                x = F.dropout(x, 0.3)
            return F.dropout(x, 0.4)

    result = capture(Skips(), torch.rand(2, 3))
    assert names(result.train) == [":dropout", ":dropout#2", ":dropout#3"]
    assert names(result.eval) == [":dropout#2", ":dropout#4", ":dropout#3"]
    assert all(len(places) == 1 for places in lines(result).values())


def test_a_shared_module_goes_on_counting() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop, self.layer = nn.Dropout(0.5), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                x = self.drop(x)
            return self.drop(self.layer(x))

    model = Twice()
    assert names(capture(model, torch.rand(2, 3)).train) == ["drop:dropout", "drop:dropout#2"]
    model.drop.train = lambda mode=True: model.drop  # type: ignore[method-assign]
    assert names(capture(model, torch.rand(2, 3)).eval) == ["drop:dropout#2"]


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda p: nn.LSTM(4, 4, 2, dropout=p, batch_first=True), "recurrent_dropout"),
        (lambda p: nn.MultiheadAttention(4, 2, dropout=p, batch_first=True), "attention_dropout"),
    ],
    ids=["recurrent", "attention"],
)
def test_layers_with_noise_inside_are_counted_at_rate_zero(make: Callable[[float], nn.Module], kind) -> None:
    class Sequence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.rate = make(0.0), 0.0

        def forward(self, x: Tensor) -> Tensor:
            for rate in (0.0, 0.5):
                if isinstance(self.layer, nn.LSTM):
                    self.layer.dropout = rate
                    x = self.layer(x)[0]
                else:
                    self.layer.dropout = rate  # type: ignore[assignment]
                    x = self.layer(x, x, x, need_weights=False)[0]
            return x

    assert names(capture(Sequence(), torch.rand(2, 3, 4)).train) == [f"layer:{kind}#2"]


def test_names_are_unique() -> None:
    result = capture(nn.Sequential(Named(()), Named(()), nn.Dropout(0.1)), torch.rand(4, 4))
    for flow in (result.train, result.eval):
        assert len(set(names(flow))) == len(names(flow))
