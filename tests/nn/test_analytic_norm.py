"""Analytic norms: the battery with a state that is learned, in a network of their own, and their manners."""

import pytest
import torch
from hypothesis import strategies as st
from layer_tester import LayerTester
from torch import nn

from varshift.functional import KalmanState
from varshift.nn import (
    AnalyticModule,
    AnalyticNetwork,
    AnalyticNorm1d,
    AnalyticNorm2d,
    AnalyticNorm3d,
    AnalyticResidual,
    propagate,
)


class WithState(nn.Module):
    """A norm whose state hangs on parameters, and whose returned state gradients pass through, too."""

    def __init__(self, kind, channels, affine=True, **factory):
        super().__init__()
        self.norm = kind(channels, affine=affine, **factory)
        self.mean = nn.Parameter(torch.empty(channels, **factory))
        self.log_var = nn.Parameter(torch.empty(channels, **factory))
        self.reset_parameters()

    def reset_parameters(self):
        nn.init.constant_(self.mean, 0.3)
        nn.init.constant_(self.log_var, -0.4)
        self.norm.reset_parameters()

    def extra_repr(self):
        return self.norm.extra_repr()

    def forward(self, x):
        precision = torch.promote_types(x.dtype, torch.float32)
        y, (mean, var) = self.norm(x, KalmanState(self.mean.to(precision), self.log_var.to(precision).exp()))
        return y + (mean - var).view(1, -1, *[1] * (x.dim() - 2)).to(y.dtype)


class TestAnalyticNorm2d(LayerTester):
    shape = (4, 6, 5, 3)

    def make(self, **factory):
        return WithState(AnalyticNorm2d, 6, **factory)

    def peer(self):
        return nn.GroupNorm(2, 6)

    def reference(self, layer, x):
        shape = (1, -1, *[1] * (x.dim() - 2))
        var = layer.log_var.exp()
        weight = torch.ones_like(var) if layer.norm.weight is None else layer.norm.weight
        bias = torch.zeros_like(var) if layer.norm.bias is None else layer.norm.bias
        scaled = (x - layer.mean.view(shape)) / (var + layer.norm.eps).sqrt().view(shape)
        state = bias - weight**2 * var / (var + layer.norm.eps)
        return weight.view(shape) * scaled + bias.view(shape) + state.view(shape)


class TestAnalyticNorm1d(TestAnalyticNorm2d):
    shape = (4, 6)

    def make(self, **factory):
        return WithState(AnalyticNorm1d, 6, affine=False, **factory)


class TestSequences(TestAnalyticNorm1d):
    shape = (3, 6, 7)


class TestAnalyticNorm3d(TestAnalyticNorm2d):
    shape = (2, 4, 3, 2, 3)

    def make(self, **factory):
        return WithState(AnalyticNorm3d, 4, **factory)


class Small(AnalyticNetwork):
    """A network with a residual block, smooth activations, padding, groups, stride and dilation."""

    def __init__(self, **factory):
        stem = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1, stride=2, **factory), AnalyticNorm2d(4, **factory), nn.GELU()
        )
        branch = nn.Sequential(
            nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=2, **factory),
            AnalyticNorm2d(4, **factory),
            nn.SiLU(),
            nn.Conv2d(4, 4, 1, **factory),
        )
        tail = nn.Sequential(
            AnalyticNorm2d(4, **factory),
            nn.Conv2d(4, 3, (1, 3), padding="same", bias=False, **factory),
            nn.Softplus(),
            AnalyticNorm2d(3, affine=False, **factory),
        )
        body = nn.Sequential(stem, AnalyticResidual(branch), tail)
        super().__init__(body, [0.2, -0.1], [1.0, 0.5], **factory)

    def reset_parameters(self):
        super().reset_parameters()
        torch.manual_seed(3)  # it also runs while the network is built
        for module in self.body.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()


class TestWholeNetwork(LayerTester):
    """Of `gradcheck`, most of all: through the moments to every weight."""

    shape = (3, 2, 6, 5)
    low_precision = 0.05

    def make(self, **factory):
        return Small(**factory)

    def reference(self, layer, x):
        state, convs = layer.state(), []
        norms = [module for module in layer.modules() if isinstance(module, AnalyticNorm2d)]
        convs = [module for module in layer.modules() if isinstance(module, nn.Conv2d)]

        def conv(index, x, state):
            layer = convs[index]
            maps = [part.view(1, -1, 1, 1).expand(1, -1, *x.shape[2:]) for part in state]
            options = (layer.stride, layer.padding, layer.dilation, layer.groups)
            mean = nn.functional.conv2d(maps[0], layer.weight, layer.bias, *options)
            var = nn.functional.conv2d(maps[1], layer.weight**2, None, *options)
            total = var.mean((0, 2, 3)) + mean.var((0, 2, 3), correction=0)
            return layer(x), (mean.mean((0, 2, 3)), total)

        def norm(index, x, state):
            layer, (mean, var) = norms[index], state
            gamma = torch.ones_like(mean) if layer.weight is None else layer.weight
            beta = torch.zeros_like(mean) if layer.bias is None else layer.bias
            scale = gamma / (var + layer.eps).sqrt()
            y = (x - mean[:, None, None]) * scale[:, None, None] + beta[:, None, None]
            return y, (beta, scale**2 * var)

        def smooth(function, x, state):
            # by a plain sum over a fine grid, which is exact to every digit for what decays like a Gaussian
            z = torch.linspace(-12, 12, 2401, dtype=torch.float64)[:, None]
            density = torch.exp(-z * z / 2)
            density = density / density.sum()
            values = function(state[0] + state[1].sqrt() * z)
            mean = (density * values).sum(0)
            return function(x), (mean, (density * (values - mean) ** 2).sum(0))

        x, state = norm(0, *conv(0, x, state))
        x, state = smooth(nn.functional.gelu, x, state)
        y, other = smooth(nn.functional.silu, *norm(1, *conv(1, x, state)))
        y, other = conv(2, y, other)
        x, state = norm(2, x + y, (state[0] + other[0], state[1] + other[1]))
        x, state = smooth(nn.functional.softplus, *conv(3, x, state))
        return norm(3, x, state)[0]

    def shapes(self):
        return st.tuples(st.integers(1, 4), st.just(2), st.integers(1, 6), st.integers(1, 6))


def test_moments_in_half_precision_are_single():
    norm = AnalyticNorm2d(3, dtype=torch.float16)
    x = torch.randn(2, 3, 4, 4).half()
    y, state = norm(x, KalmanState(torch.tensor([1e3] * 3), torch.tensor([1e6] * 3)))
    assert y.dtype == torch.float16
    assert state.mean.dtype == state.var.dtype == torch.float32
    torch.testing.assert_close(y.float(), (x.float() - 1e3) / 1e3, rtol=2e-3, atol=2e-3)


def test_blocks_of_ones_own():
    class Shared(AnalyticModule):
        def __init__(self):
            super().__init__()
            self.layer, self.norm = nn.Linear(3, 3), AnalyticNorm1d(3)

        def forward(self, x, state):
            for _ in range(2):
                x, state = self.norm(*propagate(self.layer, x, state))
            return x, state

    net, x = AnalyticNetwork(Shared(), [0.0] * 3, [1.0] * 3), torch.randn(5, 3)
    layer, norm = net.body.layer, net.body.norm
    state = KalmanState(torch.zeros(3), torch.ones(3))
    expected, state = norm(*propagate(layer, x, state))
    expected, state = norm(*propagate(layer, expected, state))
    assert torch.equal(net(x), expected)
    assert torch.equal(net.moments(x).var, state.var)
    with pytest.raises(TypeError, match=r"abstract class AnalyticModule .* forward"):
        AnalyticModule()


def test_refusals():
    state = KalmanState(torch.zeros(3), torch.ones(3))
    with pytest.raises(ValueError, match="must have 4 axes and 3 channels"):
        AnalyticNorm2d(3)(torch.randn(4, 3), state)
    with pytest.raises(ValueError, match="must have 2 or 3 axes and 3 channels"):
        AnalyticNorm1d(3)(torch.randn(4, 2), state)
    with pytest.raises(ValueError, match="one mean and one variance"):
        AnalyticNorm1d(4)(torch.randn(2, 4), state)
    with pytest.raises(ValueError, match="num_features="):
        AnalyticNorm3d(0)
    with pytest.raises(ValueError, match="eps="):
        AnalyticNorm3d(2, eps=-1.0)
