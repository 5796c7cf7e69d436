"""Dropout around global average pooling, and in front of max-pooling."""

from __future__ import annotations

import numpy as np
import pytest

from varshift import theory

# side of the map, bias before rectification, printed noise variances after and before, printed ratio
HEADS = {
    "7x7 rectified": (7, 0.0, 0.04071, 0.00250, 0.0614),
    "7x7 sparse": (7, -1.0, 0.00206, 0.00038, 0.1866),
    "8x8 rectified": (8, 0.0, 0.04155, 0.00198, 0.0476),
    "14x14 rectified": (14, 0.0, 0.04173, 0.00066, 0.0158),
}


@pytest.mark.parametrize(("side", "bias", "after", "before", "ratio"), HEADS.values(), ids=HEADS.keys())
def test_head_noise_equals_the_printed_table(side, bias, after, before, ratio):
    positions, channels = side * side, 512
    moments = theory.relu_moments(bias)
    weights = [channels**-0.5] * channels
    squared_mean = moments.mean**2 + moments.variance / positions
    expected_after = theory.head_noise_after_pooling(0.8, weights, [squared_mean**0.5] * channels)
    expected_before = theory.head_noise_before_pooling(0.8, weights, [moments.second] * channels, positions)
    # The printed figures were measured on one random map and one random filter of norm about 1.
    assert expected_after == pytest.approx(after, rel=0.04)
    assert expected_before == pytest.approx(before, rel=0.04)
    assert expected_before / expected_after == pytest.approx(ratio, rel=0.02)
    independent = theory.head_noise_ratio_independent(moments.mean, moments.variance, positions)
    assert independent == pytest.approx(expected_before / expected_after)


@pytest.mark.parametrize(("side", "bias"), [(7, 0.0), (7, -1.0), (8, 0.0)])
def test_head_noise_equals_a_simulation(side, bias):
    generator = np.random.default_rng(0)
    channels, keep, draws = 32, 0.8, 6000
    h = np.maximum(generator.standard_normal((channels, side * side)) + bias, 0)
    weights = generator.standard_normal(channels)
    after = (generator.random((draws, channels)) < keep) / keep * h.mean(axis=1) @ weights
    before = ((generator.random((draws, *h.shape)) < keep) / keep * h).mean(axis=2) @ weights
    # A variance of 6000 draws has a relative standard error of 0.018.
    assert after.var() == pytest.approx(
        theory.head_noise_after_pooling(keep, weights, h.mean(axis=1)), rel=0.08
    )
    assert before.var() == pytest.approx(
        theory.head_noise_before_pooling(keep, weights, (h**2).mean(axis=1), side * side), rel=0.08
    )


def test_head_noise_ratio_is_that_of_the_two_variances_for_each_channel():
    h = np.maximum(np.random.default_rng(1).standard_normal((50, 49)), 0)
    for channel in h:
        ratio = theory.head_noise_ratio(channel.mean(), channel.std(), 49)
        before = theory.head_noise_before_pooling(0.7, [2.0], [(channel**2).mean()], 49)
        assert ratio == pytest.approx(before / theory.head_noise_after_pooling(0.7, [2.0], [channel.mean()]))
        assert ratio <= 1


def test_head_noise_ratio_is_one_only_for_a_single_position():
    single = np.zeros(49)
    single[3] = 2.5
    assert theory.head_noise_ratio(single.mean(), single.std(), 49) == pytest.approx(1)
    signed = np.array([1.0, -0.9, 1.0, -0.9])
    assert theory.head_noise_ratio(signed.mean(), signed.std(), 4) > 1
    assert theory.head_noise_ratio_independent(0.0, 1.0, 49) == 1


def test_equal_noise_in_front_of_the_pooling():
    keep = theory.head_equal_noise_keep(0.8, 1.0, 2**0.5, 49)
    assert theory.bernoulli_noise_variance(keep) == pytest.approx(0.25 * 49 / 3)
    assert 1 - keep == pytest.approx(0.8, abs=0.005)
    before = theory.head_noise_before_pooling(keep, [0.3], [3.0], 49)
    assert before == pytest.approx(theory.head_noise_after_pooling(0.8, [0.3], [1.0]))


def test_max_pool_mean_of_a_two_by_two_window():
    assert theory.max_pool_mean_ratio(0.5, 4) == pytest.approx(1.43, abs=0.005)


def test_max_pool_mean_is_unbiased_only_without_dropout_or_pooling():
    assert theory.max_pool_mean_ratio(1.0, 9) == pytest.approx(1, abs=1e-12)
    assert theory.max_pool_mean_ratio(0.3, 1) == pytest.approx(1, abs=1e-9)
    ratios = [theory.max_pool_mean_ratio(0.5, window) for window in (1, 2, 4, 9, 100, 10_000)]
    assert ratios == sorted(ratios)
    assert ratios[-1] < 2


@pytest.mark.parametrize(("keep", "window"), [(0.5, 4), (0.8, 4), (0.5, 9), (0.2, 2), (0.9, 27)])
def test_max_pool_mean_equals_a_simulation(keep, window):
    generator = np.random.default_rng(2)
    x = np.abs(generator.standard_normal((200_000, window)))
    dropped = x * (generator.random(x.shape) < keep) / keep
    measured = dropped.max(axis=1).mean() / x.max(axis=1).mean()
    assert measured == pytest.approx(theory.max_pool_mean_ratio(keep, window), rel=0.015)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.max_pool_mean_ratio(0.0, 4), r"keep=0.0 "),
        (lambda: theory.max_pool_mean_ratio(0.5, 0), r"window=0 must be a whole number of at least 1"),
        (lambda: theory.head_noise_ratio(0.0, 1.0, 49), r"mean=0: .* not defined"),
        (lambda: theory.head_noise_ratio(1.0, -1.0, 49), r"std=-1.0 must be at least 0"),
        (lambda: theory.head_noise_ratio_independent(0.0, 0.0, 49), r"mean=0 and variance=0"),
        (lambda: theory.head_noise_after_pooling(0.5, [1.0], []), r"means is empty"),
        (
            lambda: theory.head_noise_before_pooling(0.5, [1.0], [1.0], 0),
            r"positions=0 must be a whole number",
        ),
        (lambda: theory.head_equal_noise_keep(2.0, 1.0, 1.0, 4), r"keep=2.0 "),
    ],
)
def test_bad_arguments_name_argument_value_and_rule(call, message):
    with pytest.raises(ValueError, match=message):
        call()
