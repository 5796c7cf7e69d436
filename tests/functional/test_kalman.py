"""Kalman normalisation against the paper page's vectors, its own plain equations and simulation."""

import math
import warnings

import pytest
import torch
from torch import nn

from varshift.functional import (
    KalmanState,
    add_kalman_states,
    batch_kalman_norm,
    conv_moments,
    conv_sample_moments,
    fuse_kalman_states,
    group_conv_moments,
    group_kalman_norm,
    linear_moments,
    pad_kalman_state,
    rectified_moments,
)


def tensor(text, *shape):
    values = torch.tensor([float(part) for part in text.replace("|", " ").split()], dtype=torch.float64)
    return values.reshape(shape) if shape else values


def close(actual, expected, atol=1e-11):
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


X = "1 2 3 4 0 -1 1 .5 -2 0 2 1 3 1 -1 0"
GAMMA, BETA = tensor("1.5 .5"), tensor(".1 -.2")

F_Y = """0.520291213804 1.539179004842 2.558066795881 3.57695458692
 -0.113158480804 -0.592284103952 0.365967142343 0.126404330769
 -2.536372159313 -0.498596577235 1.539179004842 0.520291213804
 1.324218388638 0.365967142343 -0.592284103952 -0.113158480804"""
F_DX = """-0.734552691964 -0.610275075298 -0.485997458632 -0.361719841966
 -0.178886268757 -0.122092116415 -0.091942734154 -0.039589376826
 0.013391028181 0.160057482409 0.306723936637 0.386223878179
 0.177769459681 0.243445202049 0.309120944417 0.348151916705"""


def run_vector(p):
    """Vector F: forward and all gradients, the weight of the prediction included."""
    leaves = {
        "x": tensor(X, 2, 2, 2, 2),
        "mean": tensor(".5 -.25"),
        "var": tensor("2 1"),
        "p": torch.tensor(p, dtype=torch.float64),
        "gamma": GAMMA.clone(),
        "beta": BETA.clone(),
    }
    leaves = {name: leaf.requires_grad_() for name, leaf in leaves.items()}
    y, state = batch_kalman_norm(
        leaves["x"],
        KalmanState(leaves["mean"], leaves["var"]),
        weight=leaves["gamma"],
        bias=leaves["beta"],
        prediction_weight=leaves["p"],
    )
    upstream = ((torch.arange(16, dtype=torch.float64) - 7.5) / 10).reshape(2, 2, 2, 2)
    gradients = torch.autograd.grad(y, list(leaves.values()), upstream)
    return y.detach(), state, dict(zip(leaves, gradients, strict=True))


def test_vector_of_micro_batches():
    y, state, gradient = run_vector(0.9)
    close(state.mean, tensor("0.5875 -0.18125", 1, 2))
    close(state.var, tensor("2.16734375 1.0890234375", 1, 2))
    close(y.flatten(), tensor(F_Y))
    close(gradient["x"].flatten(), tensor(F_DX))
    close(gradient["mean"], tensor("1.326148742455 -0.6459770267"))
    close(gradient["var"], tensor("0.805998152233 -0.319737240963"))
    close(gradient["p"], torch.tensor(-2.030015607553, dtype=torch.float64))
    close(gradient["gamma"], tensor("-2.587974989239 1.547575762767"))
    close(gradient["beta"], tensor("-1.6 1.6"))


def test_vector_of_large_batches():
    y, state, gradient = run_vector(0.05)
    close(state.mean, tensor("1.33125 0.403125", 1, 2))
    close(state.var, tensor("2.9715234375 1.464052734375", 1, 2))
    close(y.flatten()[:4], tensor("-0.188241716394 0.681921955739 1.552085627871 2.422249300004"))
    close(
        gradient["x"].flatten()[:4], tensor("-0.517471092668 -0.339346993307 -0.161222893946 0.016901205415")
    )
    close(gradient["mean"], tensor("0.037725387519 -0.026790608059"))
    close(gradient["var"], tensor("0.019180575189 -0.004798211597"))
    close(gradient["p"], torch.tensor(-0.873177084946, dtype=torch.float64))
    close(gradient["gamma"], tensor("-1.519885880658 0.561990623272"))
    close(gradient["beta"], tensor("-1.6 1.6"))


def test_vector_of_the_linear_transition():
    matrix = tensor("1 -.5 0 .25 .5 1", 2, 3)
    state = KalmanState(tensor(".2 -.4 1"), tensor("1 2 .5"))
    mean, var = linear_moments(state, matrix, 0.01)
    close(mean, tensor("0.4 0.85"))
    close(var, tensor("1.51 1.0725"))


def test_vector_of_the_moments_behind_a_convolution():
    state = KalmanState(tensor(".3 -.5"), tensor("1 .25"))
    e, w = rectified_moments(state)
    close(e, tensor("0.566761242117 0.041657735294"))
    close(w, tensor("0.466721489258 0.017099578926"))
    mean, var = conv_moments(state, tensor(".5 -.25 .1 0 1 .2 -.3 .4", 1, 2, 2, 2))
    close(mean, tensor("0.252521490623"))
    close(var, tensor("0.1725761371"))


def test_vector_of_groups():
    y, state = group_kalman_norm(
        tensor(X, 1, 4, 2, 2),
        2,
        KalmanState(tensor(".5 -.25", 1, 2), tensor("2 1", 1, 2)),
        tensor("1.5 .5 1 2"),
        tensor(".1 -.2 0 .3"),
        prediction_weight=0.3,
    )
    close(state.mean, tensor("1.06875 0.275", 1, 2))
    close(state.var, tensor("2.3546484375 1.993125", 1, 2))
    expected = """0.032795244946 1.010318954822 1.987842664698 2.965366374574
     -0.548242821643 -0.874084058269 -0.222401585018 -0.385322203331
     -1.611435931452 -0.194788958747 1.221858013958 0.513534527606
     4.160363000622 1.327069055211 -1.506224890199 -0.089577917494"""
    close(y.flatten(), tensor(expected))


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def state_like(*shape, seed=5):
    return KalmanState(draw(*shape, seed=seed), draw(*shape, seed=seed + 1).square() + 0.1)


@pytest.mark.parametrize("prediction", [None, state_like(3)], ids=["none", "weight 0"])
def test_without_a_prediction_it_is_batch_norm(prediction):
    x, mean, var = draw(4, 3, 5, 2), torch.zeros(3).double(), torch.ones(3).double()
    y, state = batch_kalman_norm(x, prediction, mean, var, GAMMA.repeat(2)[:3], None, 0.0)
    torch_mean, torch_var = torch.zeros(3).double(), torch.ones(3).double()
    expected = nn.functional.batch_norm(x, torch_mean, torch_var, GAMMA.repeat(2)[:3], None, True)
    close(y, expected, 1e-12)
    close(mean, torch_mean, 1e-14)
    close(var - 0.9, (torch_var - 0.9) * 39 / 40, 1e-14)  # biased, as released
    close(state.mean[0], x.mean((0, 2, 3)), 1e-14)


@pytest.mark.parametrize("prediction", [None, state_like(4, 3)], ids=["none", "weight 0"])
def test_without_a_prediction_it_is_group_norm(prediction):
    x, weight, bias = draw(4, 6, 5, 2), draw(6, seed=1), draw(6, seed=2)
    y, _ = group_kalman_norm(x, 3, prediction, weight, bias, 0.0)
    close(y, nn.functional.group_norm(x, 3, weight, bias), 1e-12)


def test_the_fusion_is_the_mixture_of_both():
    prediction, observed, p = state_like(2, 4), state_like(2, 4, seed=9), 0.3
    mean, var = fuse_kalman_states(prediction, observed, p, guard=math.inf)
    first = p * prediction.mean + (1 - p) * observed.mean
    second = p * (prediction.var + prediction.mean**2) + (1 - p) * (observed.var + observed.mean**2)
    close(mean, first, 1e-14)
    close(var, second - first**2, 1e-13)


@pytest.mark.parametrize(("ratio", "believed"), [(99.9, True), (100.0, False), (1e30, False)])
def test_the_guard(ratio, believed):
    observed = KalmanState(torch.zeros(2, 3).double(), torch.ones(2, 3).double())
    var = torch.ones(2, 3).double()
    var[1] = torch.tensor([ratio * 3 - 2, 1, 1])
    prediction = KalmanState(torch.ones(2, 3).double(), var)
    mean, fused = fuse_kalman_states(prediction, observed, 0.5)
    close(mean[0], torch.full((3,), 0.5).double())  # the other row is not concerned
    close(mean[1], torch.full((3,), 0.5 if believed else 0.0).double())
    if not believed:
        close(fused[1], observed.var[1])


def test_the_guard_lets_no_overflow_through():
    observed = KalmanState(torch.zeros(1, 2), torch.ones(1, 2))
    prediction = KalmanState(
        torch.full((1, 2), math.inf).requires_grad_(), torch.full((1, 2), math.inf).requires_grad_()
    )
    fused = fuse_kalman_states(prediction, observed, torch.tensor(0.5, requires_grad=True))
    assert torch.equal(fused.mean, observed.mean)
    assert torch.equal(fused.var, observed.var)


def test_constant_channels_fall_back():
    x = torch.zeros(4, 2, 3)
    y, state = batch_kalman_norm(x, KalmanState(torch.ones(2), torch.ones(2)))
    assert torch.equal(y, x)
    assert torch.equal(state.var, torch.zeros(1, 2))


def test_splits_are_slices_of_the_batch():
    x, prediction, mean = draw(6, 3, 4), state_like(3, 3), torch.zeros(3).double()
    y, state = batch_kalman_norm(x, prediction, mean, splits=3, momentum=1.0)
    for part in range(3):
        own = KalmanState(prediction.mean[part], prediction.var[part])
        expected, expected_state = batch_kalman_norm(x[2 * part : 2 * part + 2], own)
        close(y[2 * part : 2 * part + 2], expected, 1e-13)
        close(state.mean[part], expected_state.mean[0], 1e-13)
        close(state.var[part], expected_state.var[0], 1e-13)
    close(mean, state.mean.mean(0), 1e-14)


def test_moments_behind_a_relu_match_simulation():
    state = KalmanState(torch.tensor([0.3, -1.0, 2.0]), torch.tensor([1.0, 0.5, 4.0]))
    noise = torch.randn(1_000_000, 3, generator=torch.Generator().manual_seed(0))
    for slope in (0.0, 0.2, 1.0):
        sample = nn.functional.leaky_relu(state.mean + state.var.sqrt() * noise, slope)
        mean, var = rectified_moments(state, slope)
        torch.testing.assert_close(mean, sample.mean(0), rtol=0.02, atol=0.002)
        torch.testing.assert_close(var, sample.var(0), rtol=0.02, atol=0.002)


def test_moments_behind_a_relu_do_not_cancel():
    mean = torch.tensor([100.0, 1e4, -100.0, 0.0, 5.0, 1e20], dtype=torch.float32)
    var = torch.tensor([1e-2, 1.0, 1.0, 0.0, 0.0, 1.0], dtype=torch.float32)
    e, w = rectified_moments(KalmanState(mean, var))
    torch.testing.assert_close(e, mean.clamp(min=0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(w, torch.tensor([1e-2, 1.0, 0.0, 0.0, 0.0, 1.0]), rtol=1e-5, atol=1e-6)


def test_gradients_of_moments_behind_a_relu():
    mean, var = draw(7).requires_grad_(), (draw(7, seed=1).square() + 0.2).requires_grad_()
    for slope in (0.0, 0.3):
        torch.autograd.gradcheck(
            lambda m, v, b=slope: tuple(rectified_moments(KalmanState(m, v), b)), (mean, var)
        )


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(6, 4, 3),
        nn.Conv2d(6, 4, (3, 1), stride=2, dilation=2, bias=False),
        nn.Conv2d(6, 4, 3, groups=2),
        nn.Conv1d(6, 4, 5),
    ],
    ids=["plain", "strided and dilated", "grouped", "1d"],
)
def test_moments_behind_a_convolution_match_simulation(conv):
    torch.manual_seed(0)
    conv.reset_parameters()
    state = KalmanState(0.5 * torch.randn(1, 6), torch.rand(1, 6) + 0.2)
    extent = [40] * (conv.weight.dim() - 2)
    noise = torch.randn(64 if len(extent) == 2 else 2000, 6, *extent)
    shape = (1, 6, *[1] * len(extent))
    with torch.no_grad():
        out = conv(torch.relu(state.mean.view(shape) + state.var.sqrt().view(shape) * noise))
        mean, var = conv_moments(state, conv.weight, conv.bias, conv.groups)
    axes = (0, *range(2, out.dim()))
    torch.testing.assert_close(mean[0], out.mean(axes), rtol=0.03, atol=0.01)
    torch.testing.assert_close(var[0], out.var(axes), rtol=0.03, atol=0.0)


def test_moments_behind_a_linear_layer():
    linear, state = nn.Linear(5, 3).double(), state_like(2, 5)
    mean, var = conv_moments(state, linear.weight, linear.bias)
    e, w = rectified_moments(state)
    close(mean, linear(e), 1e-13)
    close(var, w @ linear.weight.square().T, 1e-13)


def test_the_sample_estimates_the_closed_form():
    torch.manual_seed(0)
    weight, state = (
        0.3 * torch.randn(4, 3, 3, 3),
        KalmanState(torch.randn(400, 3) * 0 + 0.4, torch.ones(400, 3)),
    )
    mean, var = conv_sample_moments(state, weight, (48, 48))
    expected_mean, expected_var = conv_moments(state, weight)
    # The border pulls both towards 0 by its share of the map, about 2 times 2 / 48 of a third.
    torch.testing.assert_close(mean.mean(0), expected_mean[0], rtol=0.08, atol=0.02)
    torch.testing.assert_close(var.mean(0), expected_var[0], rtol=0.08, atol=0.0)
    assert mean.std(0).min() > 0


def test_the_sample_is_biased_by_the_border_as_measured():
    # A positive kernel on a rectified map: the border lowers the mean, the more the smaller the map.
    torch.manual_seed(0)
    state = KalmanState(torch.full((20000, 1), 0.5), torch.ones(20000, 1))
    weight = torch.ones(1, 1, 3, 3)
    e = rectified_moments(state).mean[0, 0]
    for extent in (4, 16):
        mean, _ = conv_sample_moments(state, weight, (extent, extent))
        taps = ((3 * extent - 2) / extent) ** 2  # taps inside the map, on average over positions
        torch.testing.assert_close(mean.mean(), taps * e, rtol=0.01, atol=0.0)


@pytest.mark.parametrize(
    ("kernel", "dilation", "groups"), [((3, 3), 1, 1), ((2, 4), 1, 2), ((3, 2), (1, 3), 1), ((1, 1), 1, 4)]
)
def test_the_sample_passes_any_convolution_at_the_size_of_its_input(kernel, dilation, groups):
    torch.manual_seed(0)
    weight, bias = torch.randn(8, 4 // groups, *kernel), torch.randn(8)
    state, size = KalmanState(torch.zeros(3, 4), torch.ones(3, 4)), (7, 6)
    torch.manual_seed(1)
    mean, var = conv_sample_moments(state, weight, size, bias, dilation, groups)
    torch.manual_seed(1)
    sample = torch.relu(torch.randn(3, 4, *size))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that an even kernel costs it a copy
        out = nn.functional.conv2d(sample, weight, bias, padding="same", dilation=dilation, groups=groups)
    torch.testing.assert_close(mean, out.mean((2, 3)))
    torch.testing.assert_close(var, out.var((2, 3), correction=0))


def test_group_moments_are_those_of_the_union():
    torch.manual_seed(0)
    weight, bias = torch.randn(6, 4, 3, 3).double(), torch.randn(6).double()
    state = state_like(5, 2)
    mean, var = group_conv_moments(state, 3, weight, bias)
    spread = KalmanState(*(part.repeat_interleave(2, 1) for part in state))
    channel_mean, channel_var = conv_moments(spread, weight, bias)
    for group in range(3):
        own = slice(2 * group, 2 * group + 2)
        centre = channel_mean[:, own].mean(1)
        close(mean[:, group], centre, 1e-12)
        second = (channel_var[:, own] + channel_mean[:, own] ** 2).mean(1)
        close(var[:, group], second - centre**2, 1e-10)


def test_a_state_is_padded_within_each_split():
    state = KalmanState(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.ones(2, 2))
    padded = pad_kalman_state(state, 1, 1)
    assert padded.mean.flatten().tolist() == [0, 1, 2, 0, 0, 3, 4, 0]
    assert padded.var.flatten().tolist() == [0, 1, 1, 0, 0, 1, 1, 0]


def test_states_add():
    one, other = state_like(2, 3), state_like(2, 3, seed=8)
    mean, var = add_kalman_states(one, other, one)
    close(mean, 2 * one.mean + other.mean)
    close(var, 2 * one.var + other.var)


def test_refusals():
    x, state = torch.randn(4, 3, 2, 2), KalmanState(torch.zeros(5), torch.ones(5))
    with pytest.raises(ValueError, match=r"prediction.mean of shape \(5,\)"):
        batch_kalman_norm(x, state)
    with pytest.raises(ValueError, match="splits=3 must divide the batch of 4"):
        batch_kalman_norm(x, splits=3)
    with pytest.raises(ValueError, match="one value per channel"):
        batch_kalman_norm(torch.randn(4, 3), splits=4)
    with pytest.raises(ValueError, match=r"prediction_weight=1.5 must be in \[0, 1\]"):
        batch_kalman_norm(x, prediction_weight=1.5)
    with pytest.raises(ValueError, match="running_mean and running_var"):
        batch_kalman_norm(x, training=False)
    with pytest.raises(ValueError, match="must have at least the axes"):
        batch_kalman_norm(torch.randn(3))
    with pytest.raises(ValueError, match="num_groups=2 must divide the 3 channels"):
        group_kalman_norm(x, 2)
    with pytest.raises(ValueError, match=r"prediction.mean of shape \(5,\)"):
        group_kalman_norm(x, 3, state)
    with pytest.raises(ValueError, match="state has 5 channels"):
        conv_moments(state, torch.randn(2, 3, 3, 3))
    with pytest.raises(ValueError, match="no positions to sample"):
        conv_sample_moments(state, torch.randn(2, 5), ())
    with pytest.raises(ValueError, match="the matrix of shape"):
        linear_moments(state, torch.eye(3), 0.0)
    with pytest.raises(ValueError, match="they must divide the 3 channels"):
        group_conv_moments(state, 1, torch.randn(2, 3, 3, 3))
    with pytest.raises(ValueError, match="num_groups=3 must divide the 2 channels"):
        group_conv_moments(state, 3, torch.randn(2, 5, 3, 3))
    with pytest.raises(ValueError, match="before=-1"):
        pad_kalman_state(state, -1, 0)
    with pytest.raises(ValueError, match="states is empty"):
        add_kalman_states()
    with pytest.raises(ValueError, match="5 and 2 channels"):
        add_kalman_states(state, KalmanState(torch.zeros(2), torch.ones(2)))
