"""The noise layers: the battery, and what their classes add to the functions."""

import copy

import pytest
import torch
from layer_tester import LayerTester
from torch import nn

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
