"""Moments of elementwise functions: the vectors of 30-digit quadrature, and hypothesis against sampling."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from varshift.moments import _elementwise
from varshift.moments._gaussian import leaky_relu_moments, quadrature_moments
from varshift.moments._signal import Mask, Signal

POINTS = ((0.0, 1.0), (0.5, 1.0), (-1.0, 1.0), (2.0, 0.5), (0.3, 3.0))
CLOSED = {
    "relu": (
        (0.398942280401, 0.340845056908),
        (0.697796557401, 0.553440704454),
        (0.0833154705877, 0.0683983157045),
        (2.00000357263, 0.249984936918),
        (1.35280599361, 3.43420827722),
    ),
    "leaky_relu": (
        (0.359048052361, 0.376084496096),
        (0.678016901661, 0.582750213637),
        (-0.0250160764711, 0.0939605814283),
        (2.00000321537, 0.249986373698),
        (1.24752539425, 3.74622980094),
    ),
    "relu6": (
        (0.398942280245, 0.340845055108),
        (0.697796554146, 0.553440668849),
        (0.0833154705875, 0.0683983157024),
        (2.00000357263, 0.249984936918),
        (1.31964294024, 3.05545856926),
    ),
    "hardtanh": (
        (0.0, 0.516058550962),
        (0.331510236361, 0.45340799021),
        (-0.609548422215, 0.307816028224),
        (0.99575464877, 0.00142415834674),
        (0.0782095829768, 0.819377924009),
    ),
    "hardsigmoid": (
        (0.5, 0.0276390910565),
        (0.58300905729, 0.0274538581626),
        (0.33474725956, 0.0266704511055),
        (0.832625774782, 0.00666803035269),
        (0.534094186452, 0.12834808743),
    ),
    "hardswish": (
        (0.166216700656, 0.303939383561),
        (0.457097479577, 0.491875015437),
        (-0.171877560091, 0.0790120263157),
        (1.70597029407, 0.335485781011),
        (1.1806389765, 3.66228443852),
    ),
    "gelu": (
        (0.282094791774, 0.345644011024),
        (0.584085129886, 0.57752642923),
        (-0.0200544163596, 0.0667345845678),
        (1.94437215222, 0.290909064384),
        (1.29164885852, 3.53881783889),
    ),
    "elu": (
        (0.160520572267, 0.619178563372),
        (0.570859819895, 0.784540204473),
        (-0.454763945625, 0.261998877391),
        (2.00000034976, 0.24999840648),
        (1.01020770132, 4.53224745166),
    ),
}
SMOOTH = {
    "gelu tanh": (
        (0.282038588079, 0.345647945868),
        (0.584034948742, 0.577577314435),
        (-0.0200796005553, 0.0667387618073),
        (1.94447983489, 0.291150285277),
        (1.29170390532, 3.53893643848),
    ),
    "silu": (
        (0.206620964142, 0.313083296994),
        (0.5, 0.507447964729),
        (-0.125321949691, 0.0717709780374),
        (1.7692861003, 0.286576030061),
        (1.18995630473, 3.57516046368),
    ),
    "tanh": (
        (0.0, 0.394294490398),
        (0.295452877052, 0.350714649978),
        (-0.550400490793, 0.247459790528),
        (0.943792031396, 0.0040665193319),
        (0.07633295695, 0.740509216195),
    ),
    "sigmoid": (
        (0.5, 0.0433790358581),
        (0.602027132817, 0.0406040305776),
        (0.303265329856, 0.0333520893986),
        (0.870993463623, 0.00316715775089),
        (0.534407924433, 0.134412325025),
    ),
    "softplus": (
        (0.806059183347, 0.271514501801),
        (1.08172569838, 0.382519507943),
        (0.406856283088, 0.108333571514),
        (2.14032820578, 0.190045489283),
        (1.54924248909, 3.13307176902),
    ),
    "mish": (
        (0.240403888375, 0.39454816283),
        (0.5684135428, 0.613300988014),
        (-0.134606297546, 0.0936952753894),
        (1.93875109372, 0.282165744222),
        (1.2395402749, 3.68092206902),
    ),
}
FUNCTIONS = {
    "gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "mish": F.mish,
}


def at(mean, std):
    kind = {"dtype": torch.float64}
    return torch.tensor(mean, **kind), torch.tensor(std**2, **kind)


@pytest.mark.parametrize("name", CLOSED)
def test_vectors_of_exact_forms(name):
    arguments = {"negative_slope": 0.1} if name == "leaky_relu" else {}
    for point, expected in zip(POINTS, CLOSED[name], strict=True):
        found = _elementwise.CLOSED_FORMS[name](*at(*point), arguments)
        assert tuple(map(float, found)) == pytest.approx(expected, rel=1e-10, abs=1e-10), point


@pytest.mark.parametrize("name", SMOOTH)
def test_vectors_by_quadrature(name):
    for (mean, std), expected in zip(POINTS, SMOOTH[name], strict=True):
        accurate = quadrature_moments(FUNCTIONS[name], *at(mean, std), nodes=64 if std <= 1 else 180)
        tolerance = 1e-8 if std <= 1 else 2e-5
        assert tuple(map(float, accurate)) == pytest.approx(expected, abs=tolerance), (mean, std)
        default = quadrature_moments(FUNCTIONS[name], *at(mean, std))
        assert float(default[0]) == pytest.approx(expected[0], abs=4e-4 * std)
        assert float(default[1]) == pytest.approx(expected[1], abs=2e-3 * std**2)


OPERATORS = {
    "relu": ({}, F.relu),
    "leaky_relu": ({"negative_slope": 0.3}, lambda x: F.leaky_relu(x, 0.3)),
    "prelu": ({"weight": torch.tensor([-0.4])}, lambda x: F.leaky_relu(x, -0.4)),
    "relu6": ({}, F.relu6),
    "hardtanh": ({"min_val": -0.5, "max_val": 2}, lambda x: F.hardtanh(x, -0.5, 2.0)),
    "clamp": ({"min": -0.2, "max": None}, lambda x: x.clamp(min=-0.2)),
    "clamp_max": ({"max": 0.7}, lambda x: x.clamp(max=0.7)),
    "hardsigmoid": ({}, F.hardsigmoid),
    "hardswish": ({}, F.hardswish),
    "abs": ({}, torch.abs),
    "square": ({}, torch.square),
    "threshold": ({"threshold": 0.4, "value": -1.0}, lambda x: F.threshold(x, 0.4, -1.0)),
    "hardshrink": ({"lambd": 0.8}, lambda x: F.hardshrink(x, 0.8)),
    "softshrink": ({"lambd": 0.8}, lambda x: F.softshrink(x, 0.8)),
    "sign": ({}, torch.sign),
    "elu": ({"alpha": 0.7}, lambda x: F.elu(x, 0.7)),
    "celu": ({"alpha": 1.5}, lambda x: F.celu(x, 1.5)),
    "selu": ({}, F.selu),
    "gelu": ({}, F.gelu),
}


# Equally likely quantiles in place of draws: an integral without the noise of sampling.
QUANTILES = math.sqrt(2) * torch.erfinv(2 * (torch.arange(400_000, dtype=torch.float64) + 0.5) / 400_000 - 1)


@settings(max_examples=12, deadline=None)
@given(mean=st.floats(-4, 4), std=st.floats(0.05, 4))
@pytest.mark.parametrize("name", OPERATORS)
def test_closed_forms_agree_with_sampling(name, mean, std):
    arguments, function = OPERATORS[name]
    found = _elementwise.CLOSED_FORMS[name](*at(mean, std), arguments)
    values = function(mean + std * QUANTILES)
    scale = 1 + std**2
    assert float(found[0]) == pytest.approx(float(values.mean()), abs=2e-5 * scale)
    assert float(found[1]) == pytest.approx(float(values.var()), abs=4e-4 * scale**2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", OPERATORS)
def test_variances_are_sound_far_out_and_without_noise(name, dtype):
    arguments, function = OPERATORS[name]
    mean = torch.tensor([-300.0, -30.0, -5.0, 0.3, 5.0, 30.0, 300.0], dtype=dtype)
    for variance in (0.0, 1e-6, 1.0, 1e4):
        first, second = _elementwise.CLOSED_FORMS[name](mean, torch.full_like(mean, variance), arguments)
        assert torch.isfinite(first).all()
        assert torch.isfinite(second).all()
        assert (second >= 0).all()
        if variance == 0:
            assert torch.allclose(first, function(mean), atol=1e-4, rtol=1e-5)


def test_rectifier_keeps_its_digits_in_single_precision():
    a = torch.linspace(-5, 5, 1001)
    single = leaky_relu_moments(a, torch.ones_like(a))[1].double()
    exact = leaky_relu_moments(a.double(), torch.ones_like(a).double())[1]
    assert (single - exact).abs().max() < 2e-7


def test_function_without_moments_is_refused():
    x = Signal(torch.full((4,), 0.1), torch.ones(4), torch.randn(4))
    assert _elementwise.apply("log", torch.log, {}, x) is None


def test_two_point_noise_is_followed_as_a_mixture():
    base = Signal(torch.tensor([0.8, -1.1], dtype=torch.float64))
    mask = Mask(0.0, 2.0, 0.5, base, torch.tensor(1.5).double(), torch.tensor(-0.3).double())
    values = torch.stack([torch.full((2,), -0.3).double(), 2 * 1.5 * base.mean - 0.3])
    x = Signal(values.mean(0), values.var(0, correction=0), values[0] - values.mean(0), mask)
    y = _elementwise.apply("relu", torch.relu, {}, x)
    assert y.mean.tolist() == pytest.approx(values.relu().mean(0).tolist(), abs=1e-6)
    assert y.variance.tolist() == pytest.approx(values.relu().var(0, correction=0).tolist(), abs=1e-5)
    assert y.total.tolist() == pytest.approx(values[0].relu().tolist())


def test_data_and_noise_are_told_apart_by_a_rectifier():
    """The replica split: variance over the data of the mean over the noise, and the rest."""
    expected = (0.620519, 0.329929, 0.256084)
    values = 0.3 + 0.8**0.5 * QUANTILES
    draw = torch.randn_like(values)
    draw = draw * (0.5 / draw.square().mean()).sqrt()
    x = Signal(values, torch.full_like(values, 0.5), draw)
    y = _elementwise.apply("relu", torch.relu, {}, x)
    assert float(y.mean.mean()) == pytest.approx(expected[0], abs=2e-5)
    assert float(y.mean.var()) == pytest.approx(expected[1], abs=5e-5)
    assert float(y.variance.mean()) == pytest.approx(expected[2], abs=5e-5)
    assert float(y.draw.square().mean()) == pytest.approx(expected[2], rel=0.02)
    without = values.relu()
    assert float(without.mean()) == pytest.approx(0.526710, abs=2e-5)
    assert float(without.var()) == pytest.approx(0.385663, abs=5e-5)
