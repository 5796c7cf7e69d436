"""Training over evaluation along the paths of a residual network."""

from __future__ import annotations

import math

import numpy as np
import pytest

from varshift import theory


@pytest.mark.parametrize(
    ("keep", "centred", "equal_mean", "rectified"),
    [
        (0.95, 1.0526, 1.1053, 1.077),
        (0.9, 1.1111, 1.2222, 1.163),
        (0.8, 1.25, 1.5, 1.367),
        (0.5, 2.0, 3.0, 2.467),
    ],
)
def test_direct_path_equals_the_printed_numbers(keep, centred, equal_mean, rectified):
    relu = theory.relu_moments()
    assert theory.direct_inflation(keep) == pytest.approx(centred, abs=5e-5)
    assert theory.direct_inflation(keep, 1.0, 1.0) == pytest.approx(equal_mean, abs=5e-5)
    assert theory.direct_inflation(keep, relu.mean, relu.variance) == pytest.approx(rectified, abs=5e-4)


@pytest.mark.parametrize(
    ("keep", "measured_centred", "measured_equal_mean"),
    [(0.95, 1.0528, 1.1051), (0.9, 1.1115, 1.2231), (0.8, 1.2510, 1.4962), (0.5, 2.0090, 3.0066)],
)
def test_direct_path_agrees_with_the_printed_measurements(keep, measured_centred, measured_equal_mean):
    assert theory.direct_inflation(keep) == pytest.approx(measured_centred, rel=0.005)
    assert theory.direct_inflation(keep, 1.0, 1.0) == pytest.approx(measured_equal_mean, rel=0.005)


def test_direct_path_is_the_reciprocal_of_case_a():
    assert theory.direct_inflation(0.7, 0.5, 2.0) == pytest.approx(1 / theory.delta_a(0.7, 0.5, 2.0))


def test_direct_path_equals_a_simulation():
    generator = np.random.default_rng(0)
    x = generator.standard_normal(400_000)
    dropped = x * (generator.random(x.size) < 0.8) / 0.8
    assert dropped.var() / x.var() == pytest.approx(1.25, abs=0.01)
    assert theory.direct_inflation(0.8) == pytest.approx(1.25)


def test_a_weight_layer_alone_removes_nothing_for_uncorrelated_inputs():
    relu = theory.relu_moments()
    weights = np.random.default_rng(1).standard_normal(64)
    test_variance = float(relu.variance * (weights**2).sum())
    through = theory.weighted_inflation(0.5, weights, [relu.second] * 64, test_variance)
    assert through == pytest.approx(2.467, abs=5e-4)
    assert through == pytest.approx(theory.direct_inflation(0.5, relu.mean, relu.variance))


@pytest.mark.parametrize("keep", [0.5, 0.8])
@pytest.mark.parametrize("rectified", [False, True])
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("low_rank", [False, True])
def test_weighted_path_equals_a_simulation(keep, rectified, aligned, low_rank):
    generator = np.random.default_rng(2)
    samples, width = 60_000, 24
    factors = generator.standard_normal((samples, 2)) @ np.abs(generator.standard_normal((2, width)))
    x = (
        factors + 0.1 * generator.standard_normal((samples, width))
        if low_rank
        else (generator.standard_normal((samples, width)))
    )
    x = np.maximum(x, 0) if rectified else x
    weights = np.ones(width) if aligned else generator.standard_normal(width)
    test = float((x @ weights).var())
    masks = (generator.random(x.shape) < keep) / keep
    predicted = theory.weighted_inflation(keep, weights, (x**2).mean(axis=0), test)
    assert ((x * masks) @ weights).var() / test == pytest.approx(predicted, rel=0.03)


def test_weighted_path_is_mild_for_weights_along_correlated_channels():
    # d equally correlated units of variance 1, all weights 1: r = 1 + (q/k) d / (d + d (d - 1) rho).
    width, rho = 64, 0.9
    test_variance = width + width * (width - 1) * rho
    inflation = theory.weighted_inflation(0.5, [1.0] * width, [1.0] * width, test_variance)
    assert inflation == pytest.approx(1 + 1 / (1 + (width - 1) * rho))
    assert inflation < 1.08


def test_the_trunk_dilutes_the_branch():
    generator = np.random.default_rng(3)
    trunk = 2.0 * generator.standard_normal(400_000)
    branch = generator.standard_normal(400_000)
    noisy = trunk + branch * (generator.random(branch.size) < 0.5) / 0.5
    predicted = theory.diluted_inflation(4.0, 1.0, 1.0, theory.direct_inflation(0.5))
    assert predicted == pytest.approx(1.2)
    assert noisy.var() / (trunk + branch).var() == pytest.approx(predicted, rel=0.01)


def test_dilution_saturates_when_every_block_is_noisy():
    inflation, trunk = 1.0, 1.0
    for _ in range(200):
        inflation = theory.diluted_inflation(trunk, inflation, 1.0, 2.467)
        trunk += 1.0
    assert 2.4 < inflation < 2.467


def test_trunk_dropout_multiplies_up():
    assert theory.trunk_inflation(0.9, 40) == pytest.approx(67.7, abs=0.05)
    assert theory.trunk_inflation(0.5, 0) == 1
    assert theory.trunk_inflation(1.0, 1000) == 1
    assert theory.trunk_inflation(0.1, 10_000) == math.inf


def test_rectified_moments_equal_the_printed_numbers():
    relu = theory.relu_moments()
    assert relu.mean == pytest.approx(0.398942, abs=5e-7)
    assert relu.variance == pytest.approx(0.340845, abs=5e-7)
    assert relu.second == pytest.approx(0.5)
    half = theory.half_normal_moments(3.0)
    assert half.mean == pytest.approx(3 * math.sqrt(2 / math.pi))
    assert half.second == pytest.approx(9.0)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (1.0, 0.5), (-1.0, 1.0), (-0.3, 2.0), (4.0, 1.0)])
def test_rectified_moments_equal_a_quadrature(mean, std):
    z = np.linspace(-12, 12, 200_001)
    density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    values = np.maximum(mean + std * z, 0)
    first = np.trapezoid(values * density, z)
    relu = theory.relu_moments(mean, std)
    assert relu.mean == pytest.approx(first, rel=1e-6)
    assert relu.variance == pytest.approx(np.trapezoid(values**2 * density, z) - first**2, rel=1e-5)


def test_rectified_moments_at_the_edges():
    assert theory.relu_moments(2.0, 0.0) == theory.Moments(2.0, 0.0)
    assert theory.relu_moments(-2.0, 0.0) == theory.Moments(0.0, 0.0)
    far = theory.relu_moments(-30.0, 1.0)
    assert far.mean >= 0
    assert far.variance >= 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.direct_inflation(0.0), r"keep=0.0 "),
        (lambda: theory.weighted_inflation(0.5, [1.0], [1.0], 0.0), r"test_variance=0.0 must be above 0"),
        (lambda: theory.diluted_inflation(0.0, 1.0, 0.0, 1.0), r"trunk_variance=0 and branch_variance=0"),
        (lambda: theory.diluted_inflation(1.0, 0.0, 1.0, 1.0), r"trunk_inflation=0.0 must be above 0"),
        (lambda: theory.trunk_inflation(0.5, -1), r"blocks=-1 must be a whole number of at least 0"),
        (lambda: theory.relu_moments(0.0, -1.0), r"std=-1.0 must be at least 0"),
        (lambda: theory.half_normal_moments(float("nan")), r"std=nan must be finite"),
    ],
)
def test_bad_arguments_name_argument_value_and_rule(call, message):
    with pytest.raises(ValueError, match=message):
        call()
