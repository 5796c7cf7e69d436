"""Weight initialisation corrected for dropout, against the test vectors of the paper's page."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from varshift.nn.init import activation_constants, dropout_corrected_, dropout_corrected_gain

# E[f^2], E[f'^2] for a standard normal, by adaptive quadrature outside this package; some have closed forms.
EXACT = {
    "identity": (1.0, 1.0),
    "relu": (0.5, 0.5),
    "gelu": (1 / 3 + 1 / (2 * math.sqrt(3) * math.pi), 1 / 3 + 2 / (3 * math.sqrt(3) * math.pi)),
    "elu": (0.64494542, 0.66810200),
    "tanh": (0.39429449, 0.46440290),
    "silu": (0.35577552, 0.37948235),
    "mish": (0.45234219, 0.47908376),
    "selu": (1.0, 1.07157499),
    "sigmoid": (0.29337904, 0.04483624),
    "softplus": (0.92124591, 0.29337904),
}
MODULES = [
    (nn.GELU(), EXACT["gelu"]),
    (nn.GELU("tanh"), (0.42519371, 0.45581785)),
    (nn.LeakyReLU(0.01), ((1 + 1e-4) / 2,) * 2),
    (nn.LeakyReLU(0.2), (0.52, 0.52)),
    (nn.PReLU(init=0.25), ((1 + 0.25**2) / 2,) * 2),
    (nn.ReLU(inplace=True), (0.5, 0.5)),
    (nn.RReLU(0.1, 0.3), ((1 + (0.01 + 0.03 + 0.09) / 3) / 2,) * 2),
    (F.relu6, (0.5, 0.5)),  # what is beyond 6 weighs less than 1e-8
    (lambda x: x.clamp(min=0), (0.5, 0.5)),
    (lambda x: 3 * x, (9.0, 9.0)),
    (torch.square, (3.0, 4.0)),
    (lambda x: (x - 0.3).abs(), (1.09, 1.0)),  # a kink where no grid has a point
]


@pytest.mark.parametrize(("name", "expected"), EXACT.items())
def test_exact_constants_of_names(name, expected):
    assert activation_constants(name) == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize(("function", "expected"), MODULES)
def test_exact_constants_of_modules_and_functions(function, expected):
    assert activation_constants(function) == pytest.approx(expected, abs=2e-8)


ELEMENTWISE = (
    "ELU Hardshrink Hardsigmoid Hardtanh Hardswish LeakyReLU LogSigmoid PReLU ReLU ReLU6 RReLU SELU CELU "
    "GELU Sigmoid SiLU Mish Softplus Softshrink Softsign Tanh Tanhshrink"
)


@pytest.mark.parametrize("name", ELEMENTWISE.split())
def test_all_of_torchs_activations_against_sampling(name):
    module = getattr(nn, name)().train()
    z = torch.randn(400_000, generator=torch.Generator().manual_seed(7)).requires_grad_()
    torch.manual_seed(8)
    out = module(z)
    (slope,) = torch.autograd.grad(out.sum(), z)
    for exact, sample in zip(activation_constants(module), (out.detach() ** 2, slope**2), strict=True):
        error = 5 * float(sample.std()) / math.sqrt(len(z))
        assert abs(exact - float(sample.mean())) <= error + 1e-6


@pytest.mark.parametrize("layer", [nn.Softmax(0), nn.GLU(0), torch.rand_like, lambda x: x - x.mean()])
def test_what_is_no_function_of_one_value_is_refused(layer):
    with pytest.raises(ValueError, match=r"elementwise|any shape"):
        activation_constants(layer)


PRINTED = {
    "relu": (0.5, 0.5),
    "gelu": (0.425, 0.444),
    "elu": (0.645, 0.671),
    "tanh": (0.394, 0.216),
    "identity": (1, 1),
}


@pytest.mark.parametrize(
    ("given", "name"),
    [
        *((name, name) for name in PRINTED),
        *((nn.ReLU(), "relu"), (nn.GELU(), "gelu"), (nn.ELU(), "elu"), (nn.Tanh(), "tanh")),
        *((F.relu, "relu"), (torch.tanh, "tanh"), (nn.Identity(), "identity")),
    ],
)
def test_the_papers_constants(given, name):
    assert activation_constants(given, "paper") == PRINTED[name]


@pytest.mark.parametrize("given", ["silu", nn.ELU(alpha=2.0), nn.GELU("tanh"), torch.sin])
def test_the_paper_prints_no_other_constants(given):
    with pytest.raises(ValueError, match="the paper prints constants for"):
        activation_constants(given, "paper")


# Multipliers at keep 1, 0.7, 0.5 and 0.3: forward, paper, autograd.
MULTIPLIERS = {
    ("relu", "exact"): "1.414214 1.000000 1.000000 1.183216 0.969328 0.836660 "
    "1.000000 0.894427 0.707107 0.774597 0.741929 0.547723",
    ("gelu", "paper"): "1.533930 1.072729 1.072729 1.283378 1.043740 0.897510 "
    "1.084652 0.965834 0.758534 0.840168 0.803254 0.587558",
    ("gelu", "exact"): "1.533530 1.065355 1.065355 1.283044 1.038878 0.891340 "
    "1.084370 0.962978 0.753320 0.839949 0.802144 0.583519",
    ("elu", "paper"): "1.245146 0.871710 0.871710 1.041764 0.847845 0.729325 "
    "0.880451 0.784344 0.616392 0.681994 0.652148 0.477455",
    ("elu", "exact"): "1.245198 0.872690 0.872690 1.041808 0.848487 0.730144 "
    "0.880488 0.784720 0.617085 0.682023 0.652294 0.477992",
    ("tanh", "paper"): "1.593132 1.280369 1.280369 1.332910 1.183405 1.071233 "
    "1.126515 1.056443 0.905357 0.872595 0.851833 0.701287",
    ("tanh", "exact"): "1.592537 1.079145 1.079145 1.332412 1.060976 0.902878 "
    "1.126094 0.989764 0.763071 0.872269 0.829416 0.591072",
    ("identity", "exact"): "1 0.707107 0.707107 0.836660 0.685419 0.591608 "
    "0.707107 0.632456 0.500000 0.547723 0.524623 0.387298",
}


@pytest.mark.parametrize(("key", "row"), MULTIPLIERS.items(), ids=str)
def test_multipliers(key, row):
    expected = iter(map(float, row.split()))
    for keep in (1, 0.7, 0.5, 0.3):
        for mode in ("forward", "paper", "autograd"):
            gain = dropout_corrected_gain(key[0], keep_in=keep, keep_out=keep, mode=mode, constants=key[1])
            assert gain == pytest.approx(next(expected), abs=1e-6), (keep, mode)


def test_multipliers_of_the_papers_networks():
    # The MNIST network's first and last layers, where input and output act as identities.
    first = dropout_corrected_gain("identity", "relu", keep_out=0.5, mode="paper")
    assert first == pytest.approx((1 + 0.5 * 0.5) ** -0.5)
    last = dropout_corrected_gain("relu", "identity", keep_in=0.3, mode="paper")
    assert last == pytest.approx((1 + 0.5 / 0.3) ** -0.5)
    # The VGG network: the keep rate is that of the dropout that feeds the layer.
    assert dropout_corrected_gain("identity", keep_out=0.7) == 1
    assert dropout_corrected_gain("relu", keep_in=0.7) == pytest.approx((0.5 / 0.7) ** -0.5)
    # Unknown activations take one half for both constants.
    assert dropout_corrected_gain(None, mode="paper") == 1
    assert dropout_corrected_gain(None, keep_in=0.5, keep_out=0.5, mode="mean") == pytest.approx(1)


def test_the_mean_of_both_directions_is_the_forward_mode_for_relu():
    for keep in (1, 0.7, 0.3):
        both = dropout_corrected_gain("relu", keep_in=keep, keep_out=keep, mode="mean")
        assert both == pytest.approx(dropout_corrected_gain("relu", keep_in=keep))


LAYERS = [
    nn.Linear(30, 20),
    nn.Linear(3, 50, bias=False),
    nn.Conv1d(4, 6, 3),
    nn.Conv2d(6, 9, 3, groups=3),
    nn.Conv2d(3, 64, 3),  # more filters than dimensions
    nn.Conv3d(2, 3, 2),
    nn.Conv2d(8, 8, 3, groups=8),
    nn.ConvTranspose1d(4, 6, 3),
    nn.ConvTranspose2d(6, 9, 3, groups=3),
    nn.ConvTranspose3d(2, 4, 2, groups=2),
    nn.Linear(8, 4, dtype=torch.float64),
]


def norms(layer):
    """Norm over all weights of each output channel."""
    weight = layer.weight
    if not getattr(layer, "transposed", False):
        return weight.flatten(1).norm(dim=1)
    groups = layer.groups
    per_group = [part.transpose(0, 1).flatten(1).norm(dim=1) for part in weight.chunk(groups, dim=0)]
    return torch.cat(per_group)


@pytest.mark.parametrize("distribution", ["sphere", "orthogonal"])
@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_every_filter_has_the_norm(layer, distribution):
    settings = {"keep_in": 0.6, "keep_out": 0.8, "mode": "autograd"}
    assert dropout_corrected_(layer, "gelu", distribution=distribution, **settings) is layer
    found = norms(layer).double()
    torch.testing.assert_close(found, torch.full_like(found, dropout_corrected_gain("gelu", **settings)))
    assert layer.bias is None or not layer.bias.any()


def test_orthogonal_filters_are_orthogonal():
    layer = dropout_corrected_(nn.Conv2d(4, 8, 3), "identity", distribution="orthogonal")
    filters = layer.weight.flatten(1)
    torch.testing.assert_close(filters @ filters.T, torch.eye(8), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("outputs", "inputs", "keep", "name", "bound"),
    [
        (128, 784, 1, "relu", 0.08111071),
        (128, 128, 0.5, "relu", 0.13693064),
        (64, 128, 0.3, "gelu", 0.12570311),
    ],
)
def test_bound_of_the_uniform_form(outputs, inputs, keep, name, bound):
    weight = torch.empty(outputs, inputs)
    settings = {"keep_in": keep, "keep_out": keep, "mode": "paper", "constants": "paper"}
    dropout_corrected_(weight, name, distribution="uniform", **settings)
    assert float(weight.abs().max()) == pytest.approx(bound, rel=2e-3)
    assert float(weight.abs().max()) <= bound * (1 + 1e-6)
    assert float(weight.std()) == pytest.approx(bound / math.sqrt(3), rel=0.03)


def test_the_uniform_form_of_an_unknown_activation_is_glorots():
    weight = torch.empty(300, 500)
    dropout_corrected_(weight, None, mode="paper", distribution="uniform")
    assert float(weight.abs().max()) == pytest.approx(math.sqrt(6 / 800), rel=1e-3)


@pytest.mark.parametrize(
    ("layer", "fan_out"),
    [(nn.Conv2d(8, 12, 3, groups=4), 12 // 4 * 9), (nn.ConvTranspose2d(8, 12, 3, groups=4), 12 // 4 * 9)],
)
def test_fans_of_grouped_convolutions(layer, fan_out):
    dropout_corrected_(layer, None, mode="paper", distribution="uniform")
    bound = math.sqrt(3 / (0.5 * 8 // 4 * 9 + 0.5 * fan_out))
    assert 0.95 * bound < float(layer.weight.detach().abs().max()) <= bound * (1 + 1e-6)


@settings(max_examples=40, deadline=None)
@given(
    keep_in=st.floats(0.05, 1),
    keep_out=st.floats(0.05, 1),
    mode=st.sampled_from(["forward", "autograd", "paper", "mean"]),
    name=st.sampled_from(["relu", "tanh", "silu", "identity"]),
    shape=st.lists(st.integers(1, 5), min_size=2, max_size=5),
)
def test_any_weight_gets_the_norm(keep_in, keep_out, mode, name, shape):
    a, b = EXACT[name]
    weight = torch.empty(shape, dtype=torch.float64)
    dropout_corrected_(weight, name, keep_in=keep_in, keep_out=keep_out, mode=mode)
    denominator = {
        "forward": a / keep_in,
        "autograd": a / keep_in + b / keep_out,
        "paper": a / keep_in + b * keep_out,
        "mean": (a / keep_in + b / keep_out) / 2,
    }[mode]
    found = weight.flatten(1).norm(dim=1)
    torch.testing.assert_close(found, torch.full_like(found, denominator**-0.5), rtol=1e-6, atol=0)


def gains(mode, keep, depth=20, width=500, samples=1000):
    """Geometric mean per layer of the gain of the signal's and of the gradient's variance."""
    torch.manual_seed(0)
    signal = torch.randn(samples, width)
    start = signal.requires_grad_()
    with torch.no_grad():
        weights = []
        for place in range(depth):
            weight = torch.empty(width, width)
            settings = {"keep_in": 1 if place == 0 else keep, "keep_out": keep, "mode": mode}
            weights.append(dropout_corrected_(weight, "relu" if place else "identity", "relu", **settings))
    z = start
    variances = []
    for place, weight in enumerate(weights):
        z = (F.dropout(z.relu(), 1 - keep) if place else z) @ weight.T
        z.retain_grad()
        variances.append(z)
    z.backward(torch.randn(samples, width))
    forward = float(variances[-1].detach().var() / variances[0].detach().var())
    backward = float(variances[0].grad.var() / variances[-1].grad.var())
    return forward ** (1 / (depth - 1)), backward ** (1 / (depth - 1))


def test_the_forward_mode_preserves_the_signal_of_a_deep_network():
    forward, backward = gains("forward", keep=0.5)
    assert forward == pytest.approx(1, abs=0.03)
    assert backward == pytest.approx(1, abs=0.03)  # E[f'^2] / E[f^2], which is 1 for ReLU


def test_the_papers_mode_shrinks_it_as_predicted():
    forward, backward = gains("paper", keep=0.5)
    assert forward == pytest.approx(0.8, abs=0.02)
    assert backward == pytest.approx(0.8, abs=0.02)


def test_a_generator_fixes_the_weights():
    for distribution in ("sphere", "orthogonal", "uniform"):
        one, other = (
            dropout_corrected_(
                torch.empty(4, 5), distribution=distribution, generator=torch.Generator().manual_seed(3)
            )
            for _ in range(2)
        )
        assert torch.equal(one, other)


def test_half_precision_and_empty_weights():
    layer = dropout_corrected_(nn.Linear(64, 8, dtype=torch.bfloat16), "relu", keep_in=0.5)
    torch.testing.assert_close(layer.weight.float().norm(dim=1), torch.ones(8), rtol=1e-2, atol=0)
    for distribution in ("sphere", "orthogonal", "uniform"):
        assert dropout_corrected_(torch.empty(3, 0), distribution=distribution).shape == (3, 0)
        assert dropout_corrected_(torch.empty(0, 3), distribution=distribution).shape == (0, 3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"keep_in": 0}, "keep_in=0 "),
        ({"keep_in": 1.2}, "keep_in=1.2"),
        ({"keep_out": -1}, "keep_out=-1"),
        ({"mode": "backward"}, "mode='backward'"),
        ({"constants": "mine"}, "constants='mine'"),
        ({"distribution": "normal"}, "distribution='normal'"),
        ({"nonlinearity": "rely"}, "'rely'"),
        ({"nonlinearity": torch.zeros_like}, "zero everywhere"),
        ({"target": nn.ReLU()}, "target is a ReLU"),
        ({"target": nn.Sequential(nn.Linear(2, 2))}, "target is a Sequential"),
        ({"target": nn.LazyLinear(3)}, "without a shape"),
        ({"target": torch.zeros(3)}, "shape"),
        ({"target": torch.zeros(3, 2, dtype=torch.int64)}, "floating-point"),
        (
            {"target": nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))},
            "computed from other parameters",
        ),
    ],
)
def test_bad_arguments_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        dropout_corrected_(**{"target": nn.Linear(3, 4), **arguments})
