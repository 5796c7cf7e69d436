"""Moments of activations against closed forms and the paper page's table of exact constants."""

import math

import pytest
import torch
from torch import nn

from varshift.functional import activation_gain, activation_moments

# 1 / std f(Z) by 30-digit quadrature.
GAINS = {
    "relu": 1.712858550,
    "relu6": 1.712858555,
    "leaky_relu": 1.704831627,
    "gelu": 1.700926243,
    "silu": 1.787187222,
    "elu": 1.270843418,
    "celu": 1.270843418,
    "selu": 1.0,
    "softplus": 1.919125980,
    "logsigmoid": 1.919125980,
    "sigmoid": 4.801313372,
    "tanh": 1.592537420,
    "softsign": 2.337533363,
    "hardswish": 1.813871474,
    "mish": 1.592025381,
    "hardtanh": 1.392036140,
    "hardsigmoid": 6.015034487,
}


@pytest.mark.parametrize(("name", "gain"), GAINS.items())
def test_gains_of_the_table(name, gain):
    assert activation_gain(name) == pytest.approx(gain, abs=1e-8)


def test_gain_of_the_tanh_form_of_gelu():
    assert activation_gain(nn.GELU("tanh")) == pytest.approx(1.700916562, abs=1e-8)


def test_gain_of_relu_is_the_closed_form():
    assert activation_gain(nn.ReLU(inplace=True)) == pytest.approx(
        math.sqrt(2 / (1 - 1 / math.pi)), abs=1e-13
    )


def cdf(z):
    return 0.5 * math.erfc(-z / math.sqrt(2))


@pytest.mark.parametrize("threshold", [0.0, 0.3337, -1.23456789])
def test_a_jump_anywhere_is_found(threshold):
    moments = activation_moments(lambda x: (x > threshold).to(x.dtype))
    assert moments.mean == pytest.approx(cdf(-threshold), abs=1e-12)
    assert moments.second == pytest.approx(cdf(-threshold), abs=1e-12)
    assert math.isnan(moments.slope)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (1.0, 2.0), (-0.4, 0.3)])
def test_a_kink_anywhere_is_found(mean, std):
    moments = activation_moments("relu", mean, std)
    a, density = mean / std, math.exp(-((mean / std) ** 2) / 2) / math.sqrt(2 * math.pi)
    assert moments.mean == pytest.approx(mean * cdf(a) + std * density, abs=1e-12)
    assert moments.second == pytest.approx((mean**2 + std**2) * cdf(a) + mean * std * density, abs=1e-12)
    assert moments.slope == pytest.approx(cdf(a), abs=1e-12)


def test_fast_growth():
    moments = activation_moments(torch.exp)
    assert moments.mean == pytest.approx(math.exp(0.5), rel=1e-12)
    assert moments.second == pytest.approx(math.exp(2), rel=1e-12)
    assert moments.slope == pytest.approx(math.exp(2), rel=1e-12)


def test_many_steps():
    moments = activation_moments(lambda x: torch.round(x * 100) / 100)
    # Sheppard's correction, exact here to far below the tolerance.
    assert moments.variance == pytest.approx(1 + 0.01**2 / 12, abs=1e-10)


def test_a_module_is_taken_in_evaluation_and_left_alone():
    layer = nn.PReLU(init=0.1)
    moments = activation_moments(layer)
    assert moments.second == pytest.approx((1 + float(layer.weight.detach()) ** 2) / 2, abs=1e-12)
    assert layer.training
    assert layer.weight.dtype == torch.float32


def test_inside_inference_mode_and_without_gradients():
    expected = activation_moments("silu")
    with torch.inference_mode():
        assert activation_moments("silu") == expected
    with torch.no_grad():
        assert activation_moments("silu") == expected


@pytest.mark.parametrize(
    ("activation", "rule"),
    [
        (nn.Softmax(0), "elementwise"),
        (nn.GLU(), "any shape"),
        (torch.nn.functional.dropout, "free of noise"),
        ("no_such_function", "name of a function"),
        (3, "a module or a name"),
        (torch.reciprocal, "finite moments"),
        (lambda x: x.exp().exp(), "finite moments"),
    ],
)
def test_refuses_what_has_no_moments(activation, rule):
    with pytest.raises(ValueError, match=rule):
        activation_moments(activation)


def test_refuses_a_constant_for_a_gain():
    with pytest.raises(ValueError, match="must not be constant"):
        activation_gain(torch.zeros_like)


@pytest.mark.parametrize("std", [0.0, -1.0, math.nan])
def test_refuses_a_standard_deviation_that_is_none(std):
    with pytest.raises(ValueError, match="std="):
        activation_moments("relu", std=std)
