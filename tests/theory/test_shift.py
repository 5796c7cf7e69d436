"""Case (a), case (b) and the exact formula against the printed test vectors and against simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from varshift import theory

RELU_MEAN, RELU_VARIANCE = 1 / math.sqrt(2 * math.pi), 1 / 2 - 1 / (2 * math.pi)

# keep, mean, variance, variance in training, shift
CASE_A = {
    "A-1": (0.9, 0.0, 1.0, 1.111111, 0.90000000),
    "A-2": (0.7, 0.0, 1.0, 1.428571, 0.70000000),
    "A-3": (0.5, 0.0, 1.0, 2.0, 0.50000000),
    "A-4": (0.3, 0.0, 1.0, 3.333333, 0.30000000),
    "A-5": (0.5, 1.0, 1.0, 3.0, 0.33333333),
    "A-6": (0.5, 0.5, 2.0, 4.25, 0.47058824),
    "A-7": (0.9, 1.0, 0.5, 0.666667, 0.75000000),
    "A-8": (0.5, RELU_MEAN, RELU_VARIANCE, 0.840845, 0.40536012),
    "A-9": (0.8, RELU_MEAN, RELU_VARIANCE, 0.465845, 0.73167044),
}

# keep, mean, variance, correlation
SETTINGS = {
    "S1": (0.5, 0.0, 1.0, 0.0),
    "S2": (0.5, 0.0, 1.0, 0.2),
    "S3": (0.5, 1.0, 1.0, 0.2),
    "S4": (0.7, 0.5, 2.0, 0.1),
}

# weights, cos^2, K = d cos^2, shift in S1 to S4
CASE_B = {
    "B-1": ([1] * 4, 1, 4, (0.5, 0.61538462, 0.44444444, 0.72945892)),
    "B-5": ([1, 2, 3, 4], 0.833333, 3.333333, (0.5, 0.59459459, 0.42307692, 0.71894518)),
    "B-9": ([1, -1, 1, -1], 0, 0, (0.5, 0.44444444, 0.28571429, 0.65116279)),
    "B-13": ([1] * 6 + [-1] * 2, 0.25, 2, (0.5, 0.54545455, 0.37500000, 0.69525959)),
    "B-17": ([1] * 64, 1, 64, (0.5, 0.93150685, 0.87179487, 0.93804497)),
}
CASE_B_CELLS = [
    pytest.param(weights, setting, shifts[column], id=f"B-{int(row[2:]) + column}")
    for row, (weights, _, _, shifts) in CASE_B.items()
    for column, setting in enumerate(SETTINGS.values())
]


@pytest.mark.parametrize(("keep", "mean", "variance", "train", "shift"), CASE_A.values(), ids=CASE_A.keys())
def test_case_a_equals_the_printed_vectors(keep, mean, variance, train, shift):
    assert theory.dropped_variance(keep, mean, variance) == pytest.approx(train, abs=5e-7)
    assert theory.delta_a(keep, mean, variance) == pytest.approx(shift, abs=5e-9)


@pytest.mark.parametrize(("keep", "mean", "variance", "train", "shift"), CASE_A.values(), ids=CASE_A.keys())
def test_case_a_equals_a_simulation(keep, mean, variance, train, shift):
    generator = np.random.default_rng(0)
    x = mean + math.sqrt(variance) * generator.standard_normal(400_000)
    dropped = x * (generator.random(x.size) < keep) / keep
    # The relative standard error of a ratio of such variances is near 0.005 at worst (keep 0.3).
    assert x.var() / dropped.var() == pytest.approx(theory.delta_a(keep, mean, variance), rel=0.02)


@pytest.mark.parametrize(("weights", "cosine", "k", "_"), CASE_B.values(), ids=CASE_B.keys())
def test_angle_of_a_filter(weights, cosine, k, _):
    assert theory.cosine_squared(weights) == pytest.approx(cosine, abs=5e-7)
    assert theory.alignment(weights) == pytest.approx(k, abs=5e-7)
    assert theory.alignment([1e-200 * weight for weight in weights]) == pytest.approx(k, abs=5e-7)


@pytest.mark.parametrize(("weights", "setting", "shift"), CASE_B_CELLS)
def test_case_b_equals_the_printed_vectors(weights, setting, shift):
    assert theory.delta_b(*setting, theory.alignment(weights), width=len(weights)) == pytest.approx(
        shift, abs=5e-9
    )


@pytest.mark.parametrize(("weights", "setting", "shift"), CASE_B_CELLS)
def test_exact_formula_equals_case_b_under_its_assumptions(weights, setting, shift):
    keep, mean, variance, correlation = setting
    w = np.asarray(weights, dtype=np.float64)
    covariance = variance * ((1 - correlation) * np.eye(len(w)) + correlation)
    exact = theory.exact_delta(
        float(w @ covariance @ w),
        weights,
        [variance + mean**2] * len(w),
        theory.bernoulli_noise_variance(keep),
    )
    assert exact == pytest.approx(shift, abs=5e-9)


@pytest.mark.parametrize(
    ("setting", "correlation"), [("S2", 0.1), ("S3", 0.066667), ("S4", 0.067470)], ids=["S2", "S3", "S4"]
)
def test_correlation_behind_dropout(setting, correlation):
    assert theory.dropped_correlation(*SETTINGS[setting]) == pytest.approx(correlation, abs=5e-7)


def test_exact_formula_on_arbitrary_inputs_equals_a_simulation():
    generator = np.random.default_rng(1)
    mixing, offset = generator.standard_normal((6, 6)), generator.standard_normal(6)
    x = np.maximum(generator.standard_normal((400_000, 6)) @ mixing + offset, 0)
    weights = generator.standard_normal(6)
    second = (x**2).mean(axis=0)
    for s2, noise in (
        (theory.bernoulli_noise_variance(0.5), (generator.random(x.shape) < 0.5) / 0.5),
        (theory.uniform_noise_variance(0.8), 1 + generator.uniform(-0.8, 0.8, x.shape)),
        (theory.gaussian_noise_variance(0.5), 1 + 0.5 * generator.standard_normal(x.shape)),
    ):
        test = (x @ weights).var()
        measured = test / ((x * noise) @ weights).var()
        assert measured == pytest.approx(theory.exact_delta(test, weights, second, s2), rel=0.01)


def test_masks_on_whole_channels_equal_a_simulation_and_are_worse():
    generator = np.random.default_rng(2)
    channels, taps, keep = 6, 9, 0.5
    shared = generator.standard_normal((100_000, channels, 1))
    x = np.maximum(0.8 * shared + 0.6 * generator.standard_normal((100_000, channels, taps)), 0)
    weights = np.abs(generator.standard_normal((channels, taps)))
    share = (x * weights).sum(axis=2)
    test, s2 = share.sum(axis=1).var(), theory.bernoulli_noise_variance(keep)
    per_channel = theory.exact_delta(test, [1.0] * channels, (share**2).mean(axis=0), s2)
    elementwise = theory.exact_delta(test, weights.ravel(), (x**2).mean(axis=0).ravel(), s2)
    masks = (generator.random(share.shape) < keep) / keep
    assert test / (share * masks).sum(axis=1).var() == pytest.approx(per_channel, rel=0.02)
    masks = (generator.random(x.shape) < keep) / keep
    assert test / (x * masks * weights).sum(axis=(1, 2)).var() == pytest.approx(elementwise, rel=0.02)
    assert per_channel < elementwise


def test_uncorrelated_inputs_make_case_b_no_better_than_case_a_at_any_width():
    for width in (1, 4, 64, 1024):
        assert theory.delta_b(0.5, 0.3, 2.0, 0.0, width, width=width) == theory.delta_a(0.5, 0.3, 2.0)


def test_case_b_goes_to_one_with_the_width_and_with_keep():
    assert theory.delta_b(0.5, 0.0, 1.0, 0.2, 1e9) == pytest.approx(1, abs=1e-8)
    assert theory.delta_b(1.0, 0.4, 1.0, 0.2, 3.0) == 1
    assert theory.delta_a(1.0, 0.4, 1.0) == 1


def test_uncorrelated_symmetric_weights_have_an_alignment_of_one_on_average():
    generator = np.random.default_rng(3)
    for width in (16, 64, 576):
        values = [theory.alignment(row) for row in generator.standard_normal((4000, width))]
        assert np.mean(values) == pytest.approx(1, abs=5 * np.std(values) / math.sqrt(len(values)))


@pytest.mark.parametrize(
    ("beta", "centred", "with_mean"),
    [
        (0.1, 0.99667774, 0.99337748),
        (0.2, 0.98684211, 0.97402597),
        (0.3, 0.97087379, 0.94339623),
        (0.5, 0.92307692, 0.85714286),
        (1.0, 0.75, 0.6),
    ],
)
def test_uniform_noise(beta, centred, with_mean):
    assert theory.uniform_delta(beta) == pytest.approx(centred, abs=5e-9)
    assert theory.uniform_delta(beta, 1.0, 1.0) == pytest.approx(with_mean, abs=5e-9)
    keep = theory.uniform_equal_keep(beta)
    assert keep == pytest.approx(centred, abs=5e-9)
    assert theory.bernoulli_noise_variance(keep) == pytest.approx(theory.uniform_noise_variance(beta))


@pytest.mark.parametrize(("sigma", "shift"), [(1, 0.5), (0.5, 0.8), (1 / 3, 0.9)])
def test_gaussian_noise(sigma, shift):
    assert theory.gaussian_delta(sigma) == pytest.approx(shift, abs=5e-9)


def test_noise_variance_by_kind_takes_drop_rates():
    for kind in ("dropout", "channel_dropout", "drop_path", "drop_block"):
        assert theory.noise_variance(kind, 0.2) == pytest.approx(theory.bernoulli_noise_variance(0.8))
        assert theory.noise_variance(kind, 0) == 0
    assert theory.noise_variance("uniform", 0.5) == theory.uniform_noise_variance(0.5)
    assert theory.noise_variance("gaussian", 2.0) == theory.gaussian_noise_variance(2.0) == 4
    assert theory.equal_noise_keep(0.25) == 0.8


def test_feasible_correlations():
    assert theory.minimum_correlation(5) == -0.25
    assert theory.delta_b(0.5, 0.0, 1.0, -0.25, 0.0, width=5) == pytest.approx(1.25 / 2.25)
    with pytest.raises(ValueError, match=r"correlation=-0.26 must be at least .* width=5"):
        theory.delta_b(0.5, 0.0, 1.0, -0.26, 0.0, width=5)
    with pytest.raises(ValueError, match=r"correlation=-0.5 .* no variance"):
        theory.delta_b(0.5, 0.0, 1.0, -0.5, 3.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.delta_a(0.0), r"keep=0.0 must be a keep probability in \(0, 1\]"),
        (lambda: theory.delta_a(1.5), r"keep=1.5 "),
        (lambda: theory.delta_a(float("nan")), r"keep=nan must be finite"),
        (lambda: theory.delta_a("half"), r"keep='half' must be a number"),
        (lambda: theory.delta_a(0.5, 0.0, 0.0), r"variance=0.0 must be above 0"),
        (lambda: theory.delta_a(0.5, float("inf")), r"mean=inf must be finite"),
        (lambda: theory.noise_delta(-0.1), r"noise_variance=-0.1 must be at least 0"),
        (lambda: theory.delta_b(0.5, 0.0, 1.0, 1.2, 1.0), r"correlation=1.2 must be in \[-1, 1\]"),
        (lambda: theory.delta_b(0.5, 0.0, 1.0, 0.2, -1.0), r"alignment=-1.0 must be at least 0"),
        (lambda: theory.delta_b(0.5, 0.0, 1.0, 0.2, 5.0, width=4), r"alignment=5.0 must be at most width=4"),
        (lambda: theory.delta_b(0.5, 0.0, 1.0, 0.2, 1.0, width=0), r"width=0 must be a whole number"),
        (lambda: theory.alignment([]), r"weights is empty"),
        (lambda: theory.alignment([0.0, 0.0]), r"weights are all zero"),
        (lambda: theory.cosine_squared([1.0, float("nan")]), r"weights\[1\]=nan must be finite"),
        (lambda: theory.exact_delta(1.0, [1.0], [1.0, 2.0], 1.0), r"weights has 1 values and second_moments"),
        (lambda: theory.exact_delta(1.0, [1.0], [-1.0], 1.0), r"second_moments=-1.0 must be at least 0"),
        (lambda: theory.exact_delta(0.0, [1.0], [1.0], 0.0), r"test_variance=0 without any noise"),
        (lambda: theory.minimum_correlation(1), r"width=1 must be a whole number of at least 2"),
        (lambda: theory.minimum_correlation(2.5), r"width=2.5 must be a whole number"),
        (lambda: theory.uniform_noise_variance(1.1), r"beta=1.1 must be in \[0, 1\]"),
        (lambda: theory.gaussian_noise_variance(-1), r"sigma=-1 must be at least 0"),
        (lambda: theory.noise_variance("dropout", 1.0), r"rate=1.0 must be a drop probability in \[0, 1\)"),
        (lambda: theory.noise_variance("permutation", 0.1), r"kind='permutation' must be multiplicative"),
        (lambda: theory.equal_noise_keep(-1), r"variance=-1 must be at least 0"),
    ],
)
def test_bad_arguments_name_argument_value_and_rule(call, message):
    with pytest.raises(ValueError, match=message):
        call()
