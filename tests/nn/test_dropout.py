"""The noise layers: the battery, and what their classes add to the functions."""

import copy
import math

import pytest
import torch
from layer_tester import LayerTester
from torch import nn

from varshift import theory
from varshift.nn import Dropout, GaussianDropout, UniformDropout


class NoiseTester(LayerTester):
    noisy = True
    shape = (3, 4, 4, 3)

    def make(self, **factory):
        return self.layer(0.3)

    def quiet(self, **factory):
        return self.layer(0.0)

    def peer(self):
        return nn.Dropout(0.3)

    def reference(self, layer, x):
        return x


class TestDropout(NoiseTester):
    layer = Dropout


class TestDropoutOfVectors(NoiseTester):
    layer = Dropout
    shape = (16, 5)


class TestUniformDropout(NoiseTester):
    layer = UniformDropout


class TestUniformDropoutPerChannel(NoiseTester):
    def layer(self, beta):
        return UniformDropout(beta, per_channel=True)


class TestGaussianDropout(NoiseTester):
    layer = GaussianDropout


class TestGaussianDropoutOfVolumes(NoiseTester):
    layer = GaussianDropout
    shape = (2, 3, 4, 2, 3)


@pytest.mark.parametrize("layer", [Dropout(0.4), UniformDropout(0.4), GaussianDropout(0.4)])
def test_evaluation_returns_the_input_itself(layer):
    x = torch.randn(3, 4)
    assert layer.eval()(x) is x


def test_our_dropout_is_a_dropout_of_torch():
    layer = Dropout(0.4)
    assert isinstance(layer, nn.Dropout)
    layer.p = 1.0
    assert not layer(torch.randn(100)).any()


def test_the_matching_gaussian_has_the_variance_of_dropout():
    assert GaussianDropout.matching(0.2).sigma == pytest.approx(0.5)
    assert GaussianDropout.matching(0).sigma == 0


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Dropout(1.5), "p=1.5"),
        (lambda: Dropout(-0.1), "p=-0.1"),
        (lambda: Dropout(float("nan")), "p=nan"),
        (lambda: UniformDropout(1.01), "beta=1.01"),
        (lambda: UniformDropout(-0.1), "beta=-0.1"),
        (lambda: GaussianDropout(-1), "sigma=-1"),
        (lambda: GaussianDropout.matching(1.0), "p=1.0"),
    ],
)
def test_bad_arguments_are_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize("layer", [Dropout(0.3), UniformDropout(0.3), GaussianDropout(0.3)])
def test_two_copies_draw_different_noise(layer):
    x = torch.ones(1000)
    assert not torch.equal(layer(x), copy.deepcopy(layer)(x))


# ---------------------------------------------------------------------- what a norm behind them sees

STRENGTHS = {
    "dropout": (lambda: Dropout(0.5), 1.0),
    "uniform": (lambda: UniformDropout(0.5), 0.5**2 / 3),
    "uniform, whole": (lambda: UniformDropout(1.0), 1 / 3),
    "gaussian": (lambda: GaussianDropout(1 / 3), 1 / 9),
}
SAMPLES = 400_000
# Relative error of a variance: sqrt((kurtosis - 1) / n), five times, for kurtosis up to 6.
ERROR = 5 * math.sqrt(5 / SAMPLES)


def correlated_inputs(width, seed=3):
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(SAMPLES, 1, generator=generator)
    return (0.6 * common + torch.randn(SAMPLES, width, generator=generator) + 0.5).double()


@pytest.mark.parametrize(("make", "variance"), STRENGTHS.values(), ids=list(STRENGTHS))
def test_shift_of_a_norm_directly_behind(make, variance):
    x = correlated_inputs(1)
    torch.manual_seed(1)
    measured = float(x.var() / make()(x).var())
    assert measured == pytest.approx(theory.noise_delta(variance, 0.5, 1.36), rel=ERROR)
    centred = x - 0.5
    measured = float(centred.var() / make()(centred).var())
    assert measured == pytest.approx(1 / (1 + variance), rel=ERROR)


@pytest.mark.parametrize(("make", "variance"), STRENGTHS.values(), ids=list(STRENGTHS))
def test_shift_of_a_norm_behind_a_weight(make, variance):
    x = correlated_inputs(8)
    weights = torch.tensor([1.0, -0.5, 2, 0.3, 1, 1, -1, 0.7], dtype=torch.float64)
    torch.manual_seed(2)
    quiet, noisy = x @ weights, make()(x) @ weights
    expected = theory.exact_delta(float(quiet.var()), weights.tolist(), (x**2).mean(0).tolist(), variance)
    assert float(quiet.var() / noisy.var()) == pytest.approx(expected, rel=ERROR)


def test_noise_per_channel_shifts_by_the_share_of_each_channel():
    x = correlated_inputs(12).view(-1, 3, 4)
    weights = torch.linspace(-1, 2, 12, dtype=torch.float64).view(3, 4)
    torch.manual_seed(4)
    quiet = (x * weights).sum((1, 2))
    noisy = (UniformDropout(1.0, per_channel=True)(x) * weights).sum((1, 2))
    shares = ((x * weights).sum(2) ** 2).mean(0).tolist()
    expected = theory.exact_delta(float(quiet.var()), [1.0] * 3, shares, 1 / 3)
    assert float(quiet.var() / noisy.var()) == pytest.approx(expected, rel=ERROR)


def test_noise_per_channel_is_one_draw_per_sample_and_channel():
    y = UniformDropout(0.5, per_channel=True)(torch.ones(8, 16, 4, 5))
    assert torch.equal(y, y[:, :, :1, :1].expand_as(y))
    assert len(y[:, :, 0, 0].unique()) == 8 * 16
    each = UniformDropout(0.5)(torch.ones(8, 16, 4, 5))
    assert len(each.unique()) > 0.9 * each.numel()
