"""Noise as closed forms have it: what it adds, what weights make of it, and what stands in for data."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from varshift.flow import NoiseSite
from varshift.moments import _noise, predict
from varshift.moments._fields import made_up_input
from varshift.moments._signal import Signal, channel_variance
from varshift_lab.data import cifar10


def site(kind, rate):
    return NoiseSite("", "", kind, rate, None, 0, (), None, "none")


def two_values(mean, std, samples=64):
    """Values of exactly this mean and standard deviation."""
    return (mean + std * torch.tensor([-1.0, 1.0]).double()).repeat(samples // 2)[:, None]


@pytest.mark.parametrize(
    ("kind", "rate", "mean", "variance"),
    [
        ("dropout", 0.3, 0.7, 2.624285714),
        ("gaussian", (0.3 / 0.7) ** 0.5, 0.7, 2.624285714),
        ("uniform", 0.5, 0.7, 1.871666667),
        ("alpha_dropout", 0.3, 0.421866782, 1.817424888),
    ],
)
def test_vectors(kind, rate, mean, variance):
    x = Signal(two_values(0.7, 1.3))
    shape = tuple(x.mean.shape)
    if kind == "alpha_dropout":
        y = _noise.alpha_dropout(x, rate, shape)
    else:
        y = _noise.multiply(x, site(kind, rate), rate, shape, 1.0)
    assert float(y.mean.mean()) == pytest.approx(mean, abs=1e-9)
    assert float(channel_variance(y.mean) + y.noise()) == pytest.approx(variance, abs=2e-9)


def test_factors_multiply():
    """Behind several factors 1 + nu is the product of theirs."""
    x = Signal(two_values(0.7, 1.3))
    shape = tuple(x.mean.shape)
    y = _noise.multiply(
        _noise.multiply(x, site("dropout", 0.3), 0.3, shape, 1.0), site("uniform", 1.0), 1.0, shape, 1.0
    )
    whole = (1.3**2 + 0.7**2) * (1 / 0.7) * (1 + 1 / 3) - 0.7**2
    assert float(channel_variance(y.mean) + y.noise()) == pytest.approx(whole, abs=1e-9)


def correlated(*shape):
    """Skewed data that are alike in neighbours and channels."""
    x = torch.randn(shape) + torch.randn(shape[0], 1, *shape[2:])
    return (F.avg_pool2d(x, 3, 1, 1) * 2).exp() if len(shape) > 2 else x.exp()


class Gate(nn.Module):
    """One factor for each sample."""

    def forward(self, x):
        if not self.training:
            return x
        return x * (torch.rand(len(x), 1, 1, 1, device=x.device) < 0.7).float() / 0.7


def noise_behind(noise, weight, x):
    """Predicted noise variance of the input of a norm, summed over channels."""
    layer = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2:], bias=False)
    layer.weight.data.copy_(weight)
    prediction = predict(nn.Sequential(noise, layer, nn.BatchNorm2d(len(weight))), x)
    found = prediction.layer("2")
    return found.noise_share * found.states["train"].variance * len(weight)


def test_noise_of_elements_behind_weights_is_exact():
    x, weight = correlated(128, 6, 8, 8), torch.randn(5, 6, 3, 3) / 7
    expected = 0.3 / 0.7 * F.conv2d(x.square(), weight.square()).mean((0, 2, 3)).sum()
    assert noise_behind(nn.Dropout(0.3), weight, x) == pytest.approx(float(expected), rel=1e-4)


def test_noise_of_channels_behind_weights():
    """Pushed linearly through the weights of its channel, then squared; that is drawn, not computed."""
    x, weight = correlated(256, 6, 8, 8), torch.randn(5, 6, 3, 3) / 7
    parts = torch.stack([F.conv2d(x[:, i : i + 1], weight[:, i : i + 1]).square() for i in range(6)]).sum(0)
    expected = 0.3 / 0.7 * parts.mean((0, 2, 3)).sum()
    assert noise_behind(nn.Dropout2d(0.3), weight, x) == pytest.approx(float(expected), rel=0.05)


def test_noise_of_channels_behind_weights_of_each_channel_is_exact():
    x, layer = correlated(64, 6, 8, 8), nn.Conv2d(6, 6, 3, groups=6, bias=False)
    net = nn.Sequential(nn.Dropout2d(0.3), layer, nn.BatchNorm2d(6))
    found = predict(net, x).layer("2")
    expected = 0.3 / 0.7 * layer(x).detach().square().mean()
    assert found.noise_share * found.states["train"].variance == pytest.approx(float(expected), rel=1e-4)


def test_noise_of_samples_behind_weights_is_exact():
    x, weight = correlated(64, 6, 8, 8), torch.randn(5, 6, 3, 3) / 7
    expected = 0.3 / 0.7 * F.conv2d(x, weight).square().mean((0, 2, 3)).sum()
    assert noise_behind(Gate(), weight, x) == pytest.approx(float(expected), rel=1e-4)


class Branch(nn.Module):
    """A trunk and a dropped branch, with everything linear up to the norm, then a rectifier."""

    def __init__(self):
        super().__init__()
        self.branch, self.drop, self.last = nn.Conv2d(4, 4, 1), Gate(), nn.Conv2d(4, 6, 3)
        self.norm, self.then, self.end = nn.BatchNorm2d(6), nn.Conv2d(6, 5, 1), nn.BatchNorm2d(5)

    def forward(self, x):
        return self.end(self.then(torch.relu(self.norm(self.last(x + self.drop(self.branch(x)))))))


def test_dropped_branch_is_exact_up_to_the_second_norm():
    """One factor of two values per sample: everything up to the next noise can be counted out."""
    x = correlated(128, 4, 8, 8)
    net = Branch()
    found = predict(net, x)
    with torch.no_grad():
        branch = net.branch(x)
        both = [net.last(x), net.last(x + branch / 0.7)]
        chances = (0.3, 0.7)
        mean = sum(p * y for p, y in zip(chances, both, strict=True))
        total = sum(p * y.square() for p, y in zip(chances, both, strict=True))
        noise = (total - mean.square()).mean((0, 2, 3))
        middle = mean.mean((0, 2, 3))
        variance = total.mean((0, 2, 3)) - middle.square()
        assert found.layer("norm").noise_share == pytest.approx(
            float(noise.mean() / variance.mean()), rel=1e-4
        )
        ends = [
            net.then(torch.relu(F.batch_norm(y, middle, variance, net.norm.weight, net.norm.bias, eps=1e-5)))
            for y in both
        ]
        mean = sum(p * y for p, y in zip(chances, ends, strict=True))
        total = sum(p * y.square() for p, y in zip(chances, ends, strict=True))
        noise = (total - mean.square()).mean((0, 2, 3))
        variance = total.mean((0, 2, 3)) - mean.mean((0, 2, 3)).square()
    assert found.layer("end").noise_share == pytest.approx(float(noise.mean() / variance.mean()), rel=0.06)


class Dense(nn.Module):
    """Two dropped branches side by side with the trunk."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 3, 3, padding=1), nn.Conv2d(4, 5, 3, padding=1)
        self.drop, self.norm = nn.Dropout(0.5), nn.BatchNorm2d(12)
        self.last, self.end = nn.Conv2d(12, 6, 1), nn.BatchNorm2d(6)

    def forward(self, x):
        x = torch.cat([x, F.dropout(self.first(x), 0.2, self.training), self.drop(self.second(x))], 1)
        return self.end(self.last(torch.relu(self.norm(x))))


def test_dropped_parts_of_a_concatenation_are_exact_mixtures():
    x = correlated(128, 4, 8, 8)
    net = Dense()
    found = predict(net, x)
    rates = torch.tensor([0.0] * 4 + [0.2] * 3 + [0.5] * 5)[None, :, None, None]
    with torch.no_grad():
        base = torch.cat([x, net.first(x), net.second(x)], 1)
        nu = rates / (1 - rates)
        noise = (nu * base.square()).mean((0, 2, 3))
        variance = base.var((0, 2, 3), correction=0) + noise
        share = float(noise.mean() / variance.mean())
        assert found.layer("norm").noise_share == pytest.approx(share, rel=1e-4)
        middle = base.mean((0, 2, 3))
        values = [
            torch.relu(F.batch_norm(y, middle, variance, net.norm.weight, net.norm.bias, eps=1e-5))
            for y in (torch.zeros_like(base), base / (1 - rates))
        ]
        mean = rates * values[0] + (1 - rates) * values[1]
        spread = rates * (1 - rates) * (values[1] - values[0]).square()
        given = net.last(mean)
        noise = F.conv2d(spread, net.last.weight.square()).mean((0, 2, 3))
        variance = given.var((0, 2, 3), correction=0) + noise
    assert found.layer("end").noise_share == pytest.approx(float(noise.mean() / variance.mean()), rel=1e-3)


def statistics(x):
    """Share of the variance between images, spread of their contrasts, and likeness of colours."""
    x = x - x.mean((0, 2, 3), keepdim=True)
    between = x.mean((2, 3)).var(0).mean() / x.var((0, 2, 3)).mean()
    contrast = x.flatten(2).std(2).mean(1).log().std()
    colours = torch.corrcoef(x.transpose(0, 1).flatten(1))
    neighbours = (x[..., 1:] * x[..., :-1]).mean() / x.square().mean()
    return [float(between), float(contrast), float(colours[0, 1] + colours[0, 2]) / 2, float(neighbours)]


def test_made_up_images():
    x = made_up_input(torch.empty(512, 3, 32, 32))
    assert float(x.std()) == pytest.approx(1.0, abs=1e-3)
    assert float(x.mean().abs()) < 1e-5
    assert statistics(x) == pytest.approx([0.22, 0.31, 0.85, 0.82], abs=0.04)


@pytest.mark.data
def test_photographs_are_like_made_up_images(data_folder):
    photographs = cifar10(data_folder / "cifar10", batches=1).normalised()[:512]
    assert statistics(photographs) == pytest.approx([0.28, 0.31, 0.84, 0.93], abs=0.04)


def test_made_up_inputs_of_other_kinds():
    assert made_up_input(torch.arange(6)).tolist() == list(range(6))
    assert made_up_input(torch.empty(5, 7, dtype=torch.float64)).dtype == torch.float64
    assert bool(torch.isfinite(made_up_input(torch.empty(1, 2, 16))).all())
    odd = made_up_input(torch.empty(5, 8, 4, 4, 4))
    assert torch.equal(odd[0], -odd[1])
    assert bool(torch.isfinite(odd).all())
