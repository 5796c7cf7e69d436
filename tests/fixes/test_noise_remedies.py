"""The cures of noise by their options: as strong as it was, or as weak as norms need."""

import math

import pytest
import torch
from operation import operate
from torch import nn

import varshift as vs
from varshift import SiteId
from varshift._errors import VarshiftError
from varshift.fixes import Refused

X = torch.randn(64, 16)


def network(rate=0.5):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Dropout(rate), nn.BatchNorm1d(16), nn.Linear(16, 4))
    for _ in range(100):
        net(torch.randn(64, 16))
    return net


@pytest.mark.parametrize(
    ("rate", "to", "kind", "strength"),
    [
        (0.1, "uniform", "uniform", math.sqrt(3 * 0.1 / 0.9)),
        (0.5, "uniform", "uniform", 1.0),
        (0.2, "gaussian", "gaussian", 0.5),
        (0.5, "gaussian", "gaussian", 1.0),
    ],
)
def test_other_noise_is_as_strong_as_it_can_be(rate, to, kind, strength):
    operation = operate(network(rate), X, "swap-noise", to=to)
    ((_, new, value),) = operation.noises
    assert (new, value) == (kind, pytest.approx(strength, rel=1e-5))
    assert operation.proof.exact, operation.proof.unexpected
    capped = "1/3 at most" in operation.changes[0].after
    assert capped == (to == "uniform" and rate == 0.5)


def test_gaussian_noise_becomes_dropout_of_the_same_variance():
    net = nn.Sequential(nn.Linear(16, 16), vs.nn.GaussianDropout(0.5))
    operation = operate(net, X, "swap-noise", to="dropout")
    assert operation.noises == [("1", "dropout", pytest.approx(0.2))]


def test_channels_are_dropped_where_there_are_channels():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Dropout(0.25), nn.MaxPool2d(2))
    operation = operate(net, torch.randn(2, 3, 8, 8), "swap-noise", to="channel_dropout")
    assert operation.noises == [("1", "channel_dropout", 0.25)]
    with pytest.raises(Refused, match="2 dimensions"):
        operate(network(), X, "swap-noise", to="channel_dropout")


def test_rates_are_lowered_to_what_norms_forgive():
    net = network(0.5)
    operation = operate(net, X, "lower-rate")
    ((_, _, rate),) = operation.noises
    assert 0.01 < rate < 0.2
    before = vs.predict(net, X)
    after = before.what_if({"2": rate})
    assert before.worst > 1.5
    assert after.worst <= 1.1
    assert operation.proof.exact, operation.proof.unexpected
    with pytest.raises(Refused, match="as low already"):
        operate(operation.network, X, "lower-rate", rate=0.4)


def test_without_a_prediction_the_rate_is_one_that_any_norm_forgives():
    net = nn.Sequential(nn.Linear(16, 16), nn.Dropout(0.5), nn.Linear(16, 4))
    operation = operate(net, X, "lower-rate")
    ((_, _, rate),) = operation.noises
    assert rate == pytest.approx(
        0.0517, abs=1e-3
    )  # 0.08 * Var[x] / E[x^2] of a rectified normal, as p / (1 - p)


def test_options_are_checked():
    for options, text in [
        ({"to": "salt"}, "is no kind of noise"),
        ({"sigma": 0.3}, "pass beta="),
        ({"beta": 1.5}, "beta|value"),
    ]:
        with pytest.raises((VarshiftError, ValueError), match=text):
            operate(network(), X, "swap-noise", **options)
    with pytest.raises(VarshiftError, match="pass one of them"):
        operate(network(), X, "lower-rate", rate=0.1, factor=0.5)
    with pytest.raises(VarshiftError, match="is no option"):
        operate(network(), X, "remove-noise", rate=0.1)


def test_sampling_is_refused_and_named():
    class Sampler(nn.Module):
        def __init__(self):
            super().__init__()
            self.mean, self.scale = nn.Linear(16, 4), nn.Linear(16, 4)

        def forward(self, x):
            scale = self.scale(x).exp()
            return self.mean(x) + scale * torch.randn_like(scale)

    with pytest.raises(Refused, match="intended="):
        operate(Sampler(), X, "remove-noise")


def test_a_place_is_named_by_its_norm_or_its_module():
    net = nn.Sequential(network(), nn.Sequential(nn.Dropout(0.3)))
    by_norm = operate(net, X, "remove-noise", SiteId("0.3", "batch_norm"))
    assert by_norm.noises == [("1.0", "dropout", 0.3)]
    by_module = operate(net, X, "remove-noise", SiteId("1", "module"))
    assert by_module.noises == [("0.2", "dropout", 0.5)]
    with pytest.raises(Refused, match="no noise acts there"):
        operate(net, X, "remove-noise", SiteId("0.0", "dropout"))
