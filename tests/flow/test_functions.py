"""Where a network begins to compute something else in eval mode, noise and norms apart."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from varshift.flow import capture, difference_of


class Module(nn.Module):
    """Six numbers through a layer and what a function makes of the result in either mode."""

    def __init__(self, function: Callable[[Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.function = nn.Linear(6, 6), function
        self.other = nn.Linear(6, 6)
        self.stale = torch.randn(6, 6)
        self.norm = nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, self.layer(x))


def drop_path(net: Module, x: Tensor) -> Tensor:
    if not net.training:
        return x + net.other(x) * 0.5
    keep = 0.8
    return x + net.other(x) / keep * torch.empty(len(x), 1).bernoulli_(keep) * 0.5


def sampled(net: Module, x: Tensor) -> Tensor:
    spread = net.other(x)
    return net.norm(x + torch.randn_like(x) * (0.5 * spread).exp() if net.training else x)


def two_heads(net: Module, x: Tensor) -> tuple[Tensor, Tensor] | Tensor:
    return (x.relu(), net.other(x)) if net.training else x.relu()


def updated(net: Module, x: Tensor) -> Tensor:
    if net.training:
        net.stale = 0.9 * net.stale + 0.1 * net.layer.weight.detach()
    return net.norm(x)


SAME = {
    "dropout": lambda net, x: net.other(F.dropout(x, 0.5, net.training)),
    "drop path": drop_path,
    "sampling": sampled,
    "noise": lambda net, x: net.other(x + 0.1 * torch.randn_like(x)) if net.training else net.other(x),
    "second head": two_heads,
    "state": updated,
    "norm": lambda net, x: F.relu(net.norm(x)),
}
OTHER = {
    "softmax": (lambda net, x: x if net.training else x.softmax(1), None, "softmax"),
    "stale weights": (
        lambda net, x: net.other(x) if net.training else F.linear(x, net.stale, net.other.bias),
        "linear",
        "linear",
    ),
    "temperature": (lambda net, x: x / (1.0 if net.training else 2.0), "div", "div"),
    "skipped": (lambda net, x: net.other(x.relu()) if net.training else x.relu(), "linear", None),
    "before noise": (
        lambda net, x: F.dropout(x.tanh() if net.training else x, 0.5, net.training),
        "tanh",
        None,
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_noise_norms_and_what_only_training_returns_are_no_difference(name):
    captured = capture(Module(SAME[name]), torch.randn(8, 6))
    assert difference_of(captured.train, captured.eval) is None


@pytest.mark.parametrize("name", OTHER)
def test_the_first_difference_is_named_with_its_module_and_line(name):
    function, train, evaluation = OTHER[name]
    captured = capture(Module(function), torch.randn(8, 6))
    found = difference_of(captured.train, captured.eval)
    assert (found.train.op if found.train else None) == train
    assert (found.eval.op if found.eval else None) == evaluation
    part = found.eval or found.train
    assert part.source is not None
    assert part.source.file == __file__


def test_recurrent_layers_with_dropout_and_attention_are_the_same_in_both_modes():
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(6, 6, 2, dropout=0.3, batch_first=True)
            self.encoder = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.encoder(self.rnn(x)[0]).mean(1)

    captured = capture(Both(), torch.randn(4, 5, 6))
    assert difference_of(captured.train, captured.eval) is None
