"""Layers and blocks of networks without batch norm: the battery, and what they must do besides."""

import math

import pytest
import torch
from hypothesis import strategies as st
from layer_tester import LayerTester
from torch import nn

from varshift.functional import activation_gain, norm_free_betas
from varshift.nn import (
    BinaryConv2d,
    NormFreeBinaryBlock,
    NormFreeBinaryPairBlock,
    RPReLU,
    RSign,
    ScaledStdConv2d,
)


def standardised(layer, gamma=1.0):
    flat = layer.weight.flatten(1)
    centred = flat - flat.mean(1, keepdim=True)
    out = gamma / math.sqrt(flat.shape[1]) * centred / (flat.std(1, correction=0, keepdim=True) + layer.eps)
    return out.view_as(layer.weight)


def binary(layer):
    latent = standardised(layer) if layer.standardise else layer.weight
    scale = latent.abs().mean((1, 2, 3), keepdim=True)
    return scale * latent.sign() * (layer.gain if layer.standardise else 1)


class TestScaledStdConv2d(LayerTester):
    shape = (2, 6, 4, 3)

    def make(self, **factory):
        return ScaledStdConv2d(6, 4, 3, padding=1, gamma="relu", **factory)

    def peer(self):
        return nn.Conv2d(6, 4, 3, padding=1)

    def reference(self, layer, x):
        weight = layer.gain * standardised(layer, math.sqrt(2 / (1 - 1 / math.pi)))
        return nn.functional.conv2d(x, weight, layer.bias, padding=1)


class TestScaledStdConv2dWithAllArguments(LayerTester):
    shape = (2, 6, 4, 3)

    def make(self, **factory):
        return ScaledStdConv2d(
            6, 4, (3, 2), (2, 1), (2, 1), (1, 2), 2, False, "replicate", gamma=1.3, eps=0.01, **factory
        )

    def peer(self):
        return nn.Conv2d(6, 4, (3, 2), (2, 1), (2, 1), (1, 2), 2, False, "replicate")

    def reference(self, layer, x):
        padded = nn.functional.pad(x, (1, 1, 2, 2), mode="replicate")
        weight = layer.gain * standardised(layer, 1.3)
        return nn.functional.conv2d(padded, weight, None, (2, 1), 0, (1, 2), 2)

    def shapes(self):
        return st.tuples(st.integers(1, 4), st.just(6), st.integers(1, 5), st.integers(2, 5))


class TestBinaryConv2d(LayerTester):
    smooth = False

    def make(self, **factory):
        return BinaryConv2d(6, 4, 3, padding=1, **factory)

    def peer(self):
        return nn.Conv2d(6, 4, 3, padding=1)

    def reference(self, layer, x):
        return nn.functional.conv2d(x, binary(layer), padding=1)


class TestBinaryConv2dForBatchNorm(LayerTester):
    smooth = False

    def make(self, **factory):
        return BinaryConv2d(6, 4, 3, padding=1, standardise=False, bias=True, sign_of_zero=1, **factory)

    def peer(self):
        return nn.Conv2d(6, 4, 3, padding=1)

    def reference(self, layer, x):
        return nn.functional.conv2d(x, binary(layer), layer.bias, padding=1)


class TestRSign(LayerTester):
    smooth = False

    def make(self, **factory):
        return RSign(6, **factory)

    def peer(self):
        return nn.PReLU(6)

    def reference(self, layer, x):
        return (x + layer.shift[:, None, None]).sign()

    def draw(self, shape=None, dtype=torch.float64, seed=20):
        x = super().draw(shape, torch.float64, seed)
        return (x.sign() * (x.abs() + 0.5)).to(dtype)  # away from the jump, where rounding decides


class TestRPReLU(LayerTester):
    shape = (2, 6, 4, 3)

    def make(self, **factory):
        return RPReLU(6, **factory)

    def peer(self):
        return nn.PReLU(6)

    def reference(self, layer, x):
        b, a, c = (part[:, None, None] for part in (layer.shift_in, layer.slope, layer.shift_out))
        return (x + b).clamp(min=0) + a * (x + b).clamp(max=0) + c


class TestRPReLUOfVectors(TestRPReLU):
    shape = (4, 6)

    def reference(self, layer, x):
        inner = x + layer.shift_in
        return inner.clamp(min=0) + layer.slope * inner.clamp(max=0) + layer.shift_out


class Block(LayerTester):
    smooth = False
    # A sign turns a rounded input into a different output; the battery of the parts covers low precision.
    low_precision = 0.1

    def prelu(self, activation, x):
        b, a, c = (
            part[:, None, None] for part in (activation.shift_in, activation.slope, activation.shift_out)
        )
        return (x + b).clamp(min=0) + a * (x + b).clamp(max=0) + c

    def sign(self, layer, x):
        return (x + layer.shift[:, None, None]).sign()

    def pool(self, x):
        """Mean over windows of 2x2 that are cut off at the end."""
        height, width = x.shape[2:]
        rows = [
            torch.stack([x[:, :, i : i + 2, j : j + 2].mean((2, 3)) for j in range(0, width, 2)], -1)
            for i in range(0, height, 2)
        ]
        return torch.stack(rows, -2)


class TestNormFreeBinaryBlock(Block):
    def make(self, **factory):
        return NormFreeBinaryBlock(6, 6, alpha=0.3, beta=0.9, **factory)

    def reference(self, layer, x):
        h = nn.functional.conv2d(self.sign(layer.sign, 0.9 * x), binary(layer.conv), padding=1)
        return self.prelu(layer.activation, 0.3 * h + x)


class TestStridedNormFreeBinaryBlock(Block):
    def make(self, **factory):
        return NormFreeBinaryBlock(6, 10, 2, beta=0.9, **factory)

    def reference(self, layer, x):
        h = nn.functional.conv2d(self.sign(layer.sign, 0.9 * x), binary(layer.conv), stride=2, padding=1)
        res = nn.functional.conv2d(self.pool(0.9 * x), binary(layer.shortcut[1]))
        return self.prelu(layer.activation, 0.2 * h + res)


class TestNormFreeBinaryPairBlock(Block):
    def make(self, **factory):
        return NormFreeBinaryPairBlock(6, 6, betas=(0.9, 0.8), **factory)

    def reference(self, layer, x):
        h = nn.functional.conv2d(self.sign(layer.sign1, 0.9 * x), binary(layer.conv1), padding=1)
        middle = self.prelu(layer.activation1, x + 0.2 * h)
        u = self.sign(layer.sign2, 0.8 * middle)
        return self.prelu(layer.activation2, 0.2 * nn.functional.conv2d(u, binary(layer.conv2[0])) + middle)


class TestDoublingNormFreeBinaryPairBlock(Block):
    def make(self, **factory):
        return NormFreeBinaryPairBlock(6, 12, 2, betas=(0.9, 0.8), **factory)

    def reference(self, layer, x):
        h = nn.functional.conv2d(self.sign(layer.sign1, 0.9 * x), binary(layer.conv1), stride=2, padding=1)
        middle = self.prelu(layer.activation1, self.pool(0.9 * x) + 0.2 * h)
        u = self.sign(layer.sign2, 0.8 * middle)
        both = [0.2 * nn.functional.conv2d(u, binary(conv)) + middle for conv in layer.conv2]
        return self.prelu(layer.activation2, torch.cat(both, 1))


def react_net_a(**options):
    """The published stack of blocks, narrower."""
    widths = [4, 8, 16, 16, 32, 32, 64, 64]
    strided = [False, True, False, True, False, True, False]
    betas = norm_free_betas(strided, branches=2)
    blocks = [
        NormFreeBinaryPairBlock(before, after, 2 if stride else 1, betas=beta, **options)
        for before, after, stride, beta in zip(widths, widths[1:], strided, betas, strict=False)
    ]
    return nn.Sequential(ScaledStdConv2d(3, 4, 3, 2, 1, bias=False), *blocks)


def test_training_and_evaluation_are_the_same_function():
    torch.manual_seed(0)
    net, x = react_net_a(), torch.randn(2, 3, 32, 32)
    trained = net.train()(x)
    assert torch.equal(net.eval()(x), trained)
    assert not list(net.buffers())


def test_second_moments_stay_of_order_one():
    torch.manual_seed(0)
    signal = torch.randn(4, 3, 64, 64)
    for block in react_net_a():
        signal = block(signal)
        assert 0.05 < signal.square().mean() < 3


def test_both_training_steps_share_their_parameters():
    first, second = react_net_a(binary_weights=False), react_net_a()
    second.load_state_dict(first.state_dict())
    x = torch.randn(2, 3, 32, 32)
    assert not torch.equal(first(x), second(x))


def test_gradients_reach_every_parameter():
    torch.manual_seed(0)
    net = react_net_a()
    net(torch.randn(2, 3, 32, 32)).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


def test_one_bit_everywhere_where_zero_has_a_sign():
    layer = RSign(3, sign_of_zero=1)
    assert layer(torch.zeros(1, 3, 2, 2)).unique().tolist() == [1.0]
    assert RSign(3)(torch.zeros(1, 3, 2, 2)).unique().tolist() == [0.0]


def test_zero_padding_adds_zeros_and_no_signs():
    conv = BinaryConv2d(1, 1, 3, padding=1)
    with torch.no_grad():
        conv.weight.copy_(torch.arange(9.0).view(1, 1, 3, 3))
    weight, out = conv.effective_weight()[0, 0], conv(torch.ones(1, 1, 1, 1))
    torch.testing.assert_close(out.flatten(), weight[1, 1].reshape(1))


def test_gain_of_the_activation_in_front():
    for gamma, expected in (
        ("silu", activation_gain("silu")),
        (nn.Tanh(), activation_gain("tanh")),
        (2, 2.0),
    ):
        assert ScaledStdConv2d(3, 4, 3, gamma=gamma).gamma == pytest.approx(expected, rel=1e-12)


@pytest.mark.zoo
def test_agrees_with_timm_where_eps_does_not_matter():
    from varshift.integrations import declare_torchvision_operators

    declare_torchvision_operators()
    from timm.layers import ScaledStdConv2d as Other

    torch.manual_seed(0)
    ours = ScaledStdConv2d(6, 8, 3, stride=2, padding=1, groups=2, gamma=1.7, eps=1e-12).double()
    other = Other(6, 8, 3, stride=2, padding=1, groups=2, gamma=1.7, eps=1e-12).double()
    with torch.no_grad():
        ours.gain.copy_(torch.rand(8, 1, 1, 1) + 0.5)
    other.load_state_dict(ours.state_dict())
    x = torch.randn(2, 6, 7, 7).double()
    torch.testing.assert_close(ours(x), other(x), rtol=1e-9, atol=1e-10)


def test_refusals():
    for call, rule in (
        (lambda: ScaledStdConv2d(6, 4, 3, groups=4), "groups=4 must divide in_channels=6"),
        (lambda: ScaledStdConv2d(6, 4, 3, groups=3), "groups=3 must divide out_channels=4"),
        (lambda: BinaryConv2d(0, 4, 3), "in_channels=0"),
        (lambda: ScaledStdConv2d(6, 6, 1, groups=6), "filters of one weight"),
        (lambda: ScaledStdConv2d(6, 4, 3, eps=-1.0), "eps=-1.0"),
        (lambda: ScaledStdConv2d(6, 4, 3, gamma="nothing"), "'nothing'"),
        (lambda: BinaryConv2d(6, 4, 3, sign_of_zero=3), "sign_of_zero=3"),
        (lambda: RSign(3, sign_of_zero=-1), "sign_of_zero=-1"),
        (lambda: RSign(0), "num_features=0"),
        (lambda: RPReLU(3, init=math.nan), "init=nan"),
        (lambda: RSign(3)(torch.ones(1, 4, 2, 2)), "x has shape"),
        (lambda: RPReLU(3)(torch.ones(3)), "x has shape"),
        (lambda: NormFreeBinaryPairBlock(6, 18), "out_channels=18"),
        (lambda: NormFreeBinaryPairBlock(6, 6, betas=(1.0, 0.0)), r"betas\[1\]=0.0"),
        (lambda: NormFreeBinaryPairBlock(6, 6, betas=(1.0,)), "two factors"),
        (lambda: NormFreeBinaryBlock(6, 6, beta=-1.0), "beta=-1.0"),
        (lambda: NormFreeBinaryBlock(6, 6, stride=0), "stride=0"),
    ):
        with pytest.raises(ValueError, match=rule):
            call()
    assert BinaryConv2d(6, 6, 1, groups=6, standardise=False)(torch.ones(1, 6, 2, 2)).shape == (1, 6, 2, 2)
