"""Streaming moments against plain float64 restatements on the whole data."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from varshift.probe._moments import Moments, Pool, merge


def accumulate(batches, *, momentum=0.1, average=True, series=True, between=1.0):
    channels = batches[0].shape[1]
    moments = Moments(
        channels,
        torch.full((channels,), momentum, dtype=torch.float64),
        torch.full((channels,), between, dtype=torch.float64),
        average=average,
        series=series,
    )
    for batch in batches:
        tensor = torch.from_numpy(batch)
        count = torch.full((channels,), float(len(batch)), dtype=torch.float64)
        var = tensor.var(0) if len(batch) > 1 else torch.full((channels,), float("nan"), dtype=torch.float64)
        moments.add(count, tensor.mean(0), var)
    return moments


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=8),
    channels=st.integers(1, 5),
    offset=st.sampled_from([0.0, 1000.0, -1e6]),
    seed=st.integers(0, 2**16),
)
def test_pooled_moments_equal_those_of_all_values_at_once(sizes, channels, offset, seed):
    rng = np.random.default_rng(seed)
    batches = [rng.normal(offset + i, 1 + i, (size, channels)) for i, size in enumerate(sizes)]
    everything = np.concatenate(batches)
    pool = accumulate(batches).pool
    assert float(pool.count[0]) == len(everything)
    np.testing.assert_allclose(pool.mean.numpy(), everything.mean(0), rtol=1e-12)
    if len(everything) > 1:
        np.testing.assert_allclose(pool.var.numpy(), everything.var(0, ddof=1), rtol=1e-7, atol=1e-9)


def test_merging_does_not_depend_on_grouping():
    rng = np.random.default_rng(0)
    batches = [rng.normal(i, 1, (7 + i, 3)) for i in range(4)]
    left = accumulate(batches[:2]).pool
    right = accumulate(batches[2:]).pool
    both = merge(left, right)
    whole = accumulate(batches).pool
    torch.testing.assert_close(both.mean, whole.mean, rtol=1e-13, atol=0)
    torch.testing.assert_close(both.var, whole.var, rtol=1e-13, atol=0)


def test_merging_with_nothing_changes_nothing():
    rng = np.random.default_rng(0)
    pool = accumulate([rng.normal(3, 2, (9, 2))]).pool
    empty = Pool(*(torch.zeros(2, dtype=torch.float64) for _ in range(3)))
    for merged in (merge(pool, empty), merge(empty, pool)):
        torch.testing.assert_close(merged.mean, pool.mean)
        torch.testing.assert_close(merged.squares, pool.squares)


def test_without_between_term_the_variance_is_the_mean_of_batch_variances():
    rng = np.random.default_rng(0)
    batches = [rng.normal(10 * i, 1, (50, 2)) for i in range(4)]
    moments = accumulate(batches, between=0.0)
    expected = sum(((b - b.mean(0)) ** 2).sum(0) for b in batches) / (200 - 1)
    np.testing.assert_allclose(moments.pool.var.numpy(), expected, rtol=1e-12)


def test_moving_average_is_that_of_batch_norm():
    rng = np.random.default_rng(0)
    batches = [rng.normal(1, 2, (16, 3)) for _ in range(7)]
    norm = torch.nn.BatchNorm1d(3, momentum=0.3, dtype=torch.float64)
    norm.running_mean.fill_(5.0)
    start = norm.running_mean.clone(), norm.running_var.clone()
    for batch in batches:
        norm(torch.from_numpy(batch))
    mean, var = accumulate(batches, momentum=0.3).average(*start)
    torch.testing.assert_close(mean, norm.running_mean)
    torch.testing.assert_close(var, norm.running_var)


def test_cumulative_average_is_the_plain_mean():
    rng = np.random.default_rng(0)
    batches = [rng.normal(1, 2, (16, 3)) for _ in range(7)]
    mean, var = accumulate(batches, momentum=float("nan")).average()
    np.testing.assert_allclose(mean.numpy(), np.mean([b.mean(0) for b in batches], 0), rtol=1e-12)
    np.testing.assert_allclose(var.numpy(), np.mean([b.var(0, ddof=1) for b in batches], 0), rtol=1e-12)


def test_average_forgets_a_start_that_is_not_finite():
    rng = np.random.default_rng(0)
    moments = accumulate([rng.normal(1, 2, (16, 1)) for _ in range(3)])
    mean, var = moments.average(
        torch.full((1,), float("nan"), dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    )
    fresh_mean, fresh_var = moments.average()
    assert float(mean) == float(fresh_mean)
    assert float(var) == float(fresh_var)


def test_errors_predict_the_spread_of_the_estimates():
    # The claim of a standard error: over many repetitions the estimates scatter by as much as it says.
    rng = np.random.default_rng(1)
    means, variances, mean_errors, var_errors = [], [], [], []
    for _ in range(400):
        shifts = rng.normal(0, 0.5, 12)
        moments = accumulate([rng.normal(shift + 3, 1, (20, 1)) for shift in shifts], average=False)
        mean_error, var_error = moments.errors()
        sigma = moments.pool.var.sqrt()
        means.append(float(moments.pool.mean))
        variances.append(float(moments.pool.var))
        mean_errors.append(float(mean_error * sigma))
        var_errors.append(float(var_error * moments.pool.var))
    assert np.sqrt(np.mean(np.square(mean_errors))) == pytest.approx(np.std(means), rel=0.15)
    assert np.sqrt(np.mean(np.square(var_errors))) == pytest.approx(np.std(variances), rel=0.2)


def test_errors_are_infinite_for_a_single_batch():
    mean_error, var_error = accumulate([np.random.default_rng(0).normal(size=(9, 2))]).errors()
    assert torch.isinf(mean_error).all()
    assert torch.isinf(var_error).all()


def test_effective_batch_of_independent_values_is_the_batch_size():
    rng = np.random.default_rng(0)
    moments = accumulate([rng.normal(size=(32, 400)) for _ in range(40)])
    within, between = moments.effective_batch()
    assert float(within.mean() / between.mean()) == pytest.approx(32, rel=0.06)
