"""Norms are recognised by what training and evaluation do with states, whatever these are called."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from varshift.flow import capture, recognised_norms
from varshift.model import find_norms

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from hand_norms import LOOK_ALIKES, NORMS, batch_for


@pytest.mark.parametrize("name", NORMS)
def test_a_norm_written_by_hand_is_recognised_with_its_states_and_their_form(name) -> None:
    build, shape, form, supported = NORMS[name]
    torch.manual_seed(0)
    network = build()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    captured = capture(network, batch_for(shape))
    expected = ["1", "1#2"] if name == "two" else ["norm"] if name.startswith("kind rows") else ["1"]
    for flow in (captured.train, captured.eval):
        assert [site.name for site in flow.norms] == expected
        assert [len(site.calls) for site in flow.norms] == [1] * len(expected)
    assert not any(site.batch_statistics for site in captured.eval.norms)
    learns = name not in ("frozen", "sums")  # these normalise with running statistics in training too
    assert all(site.batch_statistics == learns for site in captured.train.norms)
    norms = find_norms(network, recognised_norms(network, captured))
    assert [norm.name for norm in norms] == expected
    assert all((norm.states.unsupported is None) == supported for norm in norms)
    if supported:
        assert {norm.states.form for norm in norms} == {form}
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize("name", LOOK_ALIKES)
def test_what_only_looks_like_a_norm_is_none(name) -> None:
    torch.manual_seed(0)
    network = LOOK_ALIKES[name]()
    captured = capture(network, torch.randn(5, 4))
    for flow in (captured.train, captured.eval):
        assert [site.name for site in flow.norms if site.tracked] == []
    assert find_norms(network, recognised_norms(network, captured)) == ()


def test_momentum_is_the_weight_of_the_batch_whatever_the_norm_calls_momentum() -> None:
    build, shape, _, _ = NORMS["scaled and added"]
    network = build()
    network[1].momentum = 0.99  # the weight of the old value, as Keras has it
    (norm,) = find_norms(network, recognised_norms(network, capture(network, batch_for(shape))))
    assert norm.momentum == pytest.approx(0.01, rel=1e-4)


def test_what_a_norm_adds_before_it_stores_a_variance_is_known() -> None:
    build, shape, _, _ = NORMS["inverse deviation"]
    network = build()
    (norm,) = find_norms(network, recognised_norms(network, capture(network, batch_for(shape))))
    assert norm.states.eps == pytest.approx(1e-3, rel=0.05)
    with torch.no_grad():
        network[1].q.fill_((4 + 1e-3) ** -0.5)
    torch.testing.assert_close(norm.var, torch.full((6,), 4.0), rtol=1e-3, atol=0)


def test_two_modules_with_the_same_states_are_one_norm() -> None:
    build, shape, _, _ = NORMS["lerped"]
    network = build()
    other = build()[1]
    other.ema_mean, other.ema_var = network[1].ema_mean, network[1].ema_var
    network = nn.Sequential(network[0], network[1], nn.ReLU(), other)
    captured = capture(network, batch_for(shape))
    assert len(find_norms(network, recognised_norms(network, captured))) == 1


def test_a_norm_called_several_times_is_one_norm_with_several_calls() -> None:
    build, shape, _, _ = NORMS["lerped"]
    norm = build()[1]
    network = nn.Sequential(nn.Linear(4, 6), norm, nn.ReLU(), norm)
    captured = capture(network, batch_for(shape))
    for flow in (captured.train, captured.eval):
        (site,) = flow.norms
        assert (site.name, len(site.calls)) == ("1", 2)
    assert captured.train.norms[0].states.form == "variance"


def test_a_norm_is_recognised_in_a_network_whose_training_cannot_be_captured() -> None:
    class Untrainable(nn.Sequential):
        def forward(self, x):
            if self.training:
                raise RuntimeError("needs targets")
            return super().forward(x)

    network = Untrainable(nn.Linear(4, 6), NORMS["lerped"][0]()[1])
    captured = capture(network, torch.randn(5, 4))
    assert captured.train is None
    assert [site.name for site in captured.eval.norms] == ["1"]
