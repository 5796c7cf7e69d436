"""Moments behind convolutions and pools: against maps, against simulation, against worked vectors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from varshift.functional import (
    KalmanState,
    analytic_norm,
    channel_moments,
    conv_moments,
    padded_conv_moments,
    rectified_moments,
    transposed_conv_moments,
)
from varshift.functional._analytic_moments import averaged_moments, maximum_moments, pooled_cells


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def over_map(mean_map, var_map):
    """Moments over all positions of a map, from those at each position."""
    return KalmanState(mean_map.mean(1), var_map.mean(1) + mean_map.var(1, correction=0))


AXES = st.tuples(
    st.integers(3, 7), st.integers(1, 3), st.integers(1, 3), st.integers(0, 2), st.integers(1, 2)
)


@settings(max_examples=40, deadline=None)
@given(st.lists(AXES, min_size=1, max_size=3), st.integers(1, 3), st.booleans(), st.integers(0, 99))
def test_a_padded_convolution_is_the_average_over_its_map(axes, groups, with_bias, seed):
    size, kernel, stride, padding, dilation = zip(*axes, strict=True)
    if any(e + 2 * p < d * (k - 1) + 1 for e, k, p, d in zip(size, kernel, padding, dilation, strict=True)):
        return
    mean, var = draw(2 * groups, seed=seed), draw(2 * groups, seed=seed + 1).square()
    weight = draw(3 * groups, 2, *kernel, seed=seed + 2)
    bias = draw(3 * groups, seed=seed + 3) if with_bias else None
    conv = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[len(size)]
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}

    def full(channels):
        return channels.view(1, -1, *[1] * len(size)).expand(1, -1, *size)

    expected = over_map(
        conv(full(mean), weight, bias, **options)[0].flatten(1),
        conv(full(var), weight.square(), **options)[0].flatten(1),
    )
    around = [(zeros, zeros) for zeros in padding]
    found = padded_conv_moments(KalmanState(mean, var), weight, bias, size, stride, around, dilation, groups)
    torch.testing.assert_close(found.mean, expected.mean, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.var, expected.var, rtol=1e-10, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.lists(AXES, min_size=1, max_size=2), st.integers(1, 3), st.integers(0, 99))
def test_a_transposed_convolution_is_the_average_over_its_map(axes, groups, seed):
    size, kernel, stride, padding, dilation = zip(*axes, strict=True)
    mean, var = draw(2 * groups, seed=seed), draw(2 * groups, seed=seed + 1).square()
    weight = draw(2 * groups, 3, *kernel, seed=seed + 2)
    bias = draw(3 * groups, seed=seed + 3)
    conv = {1: F.conv_transpose1d, 2: F.conv_transpose2d}[len(size)]
    after = [
        (e - 1) * s - 2 * p + d * (k - 1) + 1
        for e, k, s, p, d in zip(size, kernel, stride, padding, dilation, strict=True)
    ]
    if min(after) < 1:
        return
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}

    def full(channels):
        return channels.view(1, -1, *[1] * len(size)).expand(1, -1, *size)

    expected = over_map(
        conv(full(mean), weight, bias, **options)[0].flatten(1),
        conv(full(var), weight.square(), **options)[0].flatten(1),
    )
    found = transposed_conv_moments(
        KalmanState(mean, var), weight, bias, size, after, stride, padding, dilation, groups
    )
    torch.testing.assert_close(found.mean, expected.mean, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.var, expected.var, rtol=1e-10, atol=1e-12)


def test_without_padding_it_is_the_kernel_of_the_kalman_norms():
    state, weight = KalmanState(draw(4), draw(4, seed=1).square()), draw(6, 2, 3, 3, seed=2)
    found = padded_conv_moments(state, weight, None, (5, 5), (2, 1), [(0, 0)] * 2, (1, 2), groups=2)
    expected = conv_moments(state, weight, groups=2, negative_slope=1.0)
    assert torch.equal(found.mean, expected.mean)
    assert torch.equal(found.var, expected.var)


def test_vectors_of_a_chain():
    """Norm, ReLU and a linear layer on a correlated example, the covariance left out."""
    first = KalmanState(
        torch.tensor([0.65, -0.09], dtype=torch.float64), torch.tensor([0.725, 0.602], dtype=torch.float64)
    )
    gamma, beta = (torch.tensor(v, dtype=torch.float64) for v in ((1.2, 0.7), (0.1, -0.2)))
    _, state = analytic_norm(torch.zeros(1, 2, dtype=torch.float64), first, gamma, beta, 1e-5)
    state = rectified_moments(state)
    torch.testing.assert_close(
        state.mean, torch.tensor([0.53038874, 0.19057881], dtype=torch.float64), rtol=0, atol=1e-8
    )
    torch.testing.assert_close(
        state.var,
        torch.tensor([0.539534115312, 0.115459111702], dtype=torch.float64),
        rtol=0,
        atol=1e-11,
    )
    weight = torch.tensor([[0.9, -0.6], [0.4, 1.1]], dtype=torch.float64)
    state = conv_moments(state, weight, negative_slope=1.0)
    torch.testing.assert_close(
        state.mean, torch.tensor([0.36300258, 0.42179219], dtype=torch.float64), rtol=0, atol=1e-8
    )
    torch.testing.assert_close(
        state.var, torch.tensor([0.47858791, 0.22603098], dtype=torch.float64), rtol=0, atol=1e-8
    )


@pytest.mark.parametrize(
    ("cells", "mean", "var"),
    [
        (1, 0.0, 1.0),
        (2, 0.564189584, 0.681690114),
        (3, 0.846284375, 0.559467204),
        (4, 1.029375373, 0.491715237),
        (9, 1.485013162, 0.357353326),
        (16, 1.765991393, 0.295009809),
        (25, 1.965314610, 0.258510777),
    ],
)
def test_the_largest_of_independent_gaussians(cells, mean, var):
    state = KalmanState(torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    found = maximum_moments(state, cells)
    assert abs(found.mean.item() - mean) < 1e-9
    assert abs(found.var.item() - var) < 1e-9
    shifted = maximum_moments(KalmanState(state.mean + 3, 4 * state.var), cells)
    assert abs(shifted.mean.item() - (3 + 2 * mean)) < 2e-9
    assert abs(shifted.var.item() - 4 * var) < 4e-9


@pytest.mark.parametrize(
    ("before", "after"), [((6, 5), (2, 3)), ((7,), (3,)), ((4, 4), (1, 1)), ((3,), (5,))]
)
def test_adaptive_bins(before, after):
    pool = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d}[len(before)]
    matrix = torch.eye(torch.Size(before).numel(), dtype=torch.float64).view(-1, 1, *before)
    averages = pool(matrix, after).flatten(1)  # the weight of each element in each bin
    expected = averages.square().sum(0).mean()
    found = averaged_moments(KalmanState(torch.zeros(1), torch.ones(1)), pooled_cells(before, after))
    assert abs(found.var.item() - expected.item()) < 1e-7


def test_moments_of_a_data_set():
    x = 100 + 3 * draw(50, 3, 4, 2)
    expected = KalmanState(x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0))
    labels = torch.zeros(50)
    for batches in (x, x.split(7), [(part, labels) for part in x.split([20, 0, 30])]):
        found = channel_moments(batches)
        torch.testing.assert_close(found.mean, expected.mean, rtol=1e-12, atol=0)
        torch.testing.assert_close(found.var, expected.var, rtol=1e-10, atol=0)
    with pytest.raises(ValueError, match="batches is empty"):
        channel_moments([])


def test_refusals():
    state = KalmanState(torch.zeros(3), torch.ones(3))
    with pytest.raises(ValueError, match="state has 3 channels: the weight takes 4"):
        padded_conv_moments(state, torch.ones(2, 4, 3), None, [5], [1], [(1, 1)], [1])
    with pytest.raises(ValueError, match="one mean and one variance per channel"):
        analytic_norm(torch.zeros(2, 4), state)
    with pytest.raises(ValueError, match="eps="):
        analytic_norm(torch.zeros(2, 3), state, eps=-1.0)
