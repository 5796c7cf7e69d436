"""Layers and blocks of networks without batch norm: the battery, and what they must do besides."""

import itertools
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


STRIDED = [False, True, False, True, False, True, False, False, False, False, False, True, False]
WIDTHS = [32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024]


def react_net_a(share=1, **options):
    """Stem and blocks of the published network, its widths divided by a number."""
    widths, betas = [width // share for width in WIDTHS], norm_free_betas(STRIDED, branches=2)
    device = options.get("device")
    return nn.Sequential(
        ScaledStdConv2d(3, widths[0], 3, 2, 1, bias=False, device=device),
        *(
            NormFreeBinaryPairBlock(before, after, 2 if stride else 1, betas=beta, **options)
            for before, after, stride, beta in zip(widths, widths[1:], STRIDED, betas, strict=False)
        ),
    )


def size(*modules):
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def test_sizes_of_the_published_networks():
    widths = [64] * 5 + [128] * 4 + [256] * 4 + [512] * 4
    blocks = [
        NormFreeBinaryBlock(before, after, 1 if before == after else 2, device="meta")
        for before, after in itertools.pairwise(widths)
    ]
    place = {"device": "meta"}
    large = size(react_net_a(**place), nn.Linear(1024, 1000, **place))
    images = size(*blocks, ScaledStdConv2d(3, 64, 7, bias=False, **place), nn.Linear(512, 1000, **place))
    small = size(*blocks, ScaledStdConv2d(3, 64, 3, bias=False, **place), nn.Linear(512, 10, **place))
    # Counted in millions on the authors' own models.
    assert [round(count / 1e6, 2) for count in (large, images, small)] == [29.33, 11.7, 11.18]


# Mean over channels of the squared mean and of the variance, behind stem and blocks, as measured on the
# authors' own model at the start, for normal noise of 224 pixels.
SIGNAL = [
    (0, 0.99),
    (0.15, 0.39),
    (0.16, 0.11),
    (0.20, 0.12),
    (0.19, 0.04),
    (0.21, 0.04),
    (0.22, 0.018),
    (0.25, 0.025),
    (0.26, 0.033),
    (0.29, 0.041),
    (0.31, 0.050),
    (0.33, 0.059),
    (0.26, 0.022),
    (0.27, 0.031),
]


def test_the_signal_passes_as_in_the_published_network():
    torch.manual_seed(0)
    net, signal = react_net_a(), torch.randn(1, 3, 224, 224)
    for module in net.modules():
        if isinstance(module, BinaryConv2d):
            nn.init.uniform_(module.weight, 0, 1e-3)
    with torch.no_grad():
        for block, (square, variance) in zip(net, SIGNAL, strict=True):
            signal = block(signal)
            own_variance, mean = torch.var_mean(signal, (0, 2, 3))
            # Starts have a standard deviation of up to 8 %, theirs and ours: three of that of the ratio.
            assert mean.square().mean().item() == pytest.approx(square, rel=0.33, abs=0.005)
            assert own_variance.mean().item() == pytest.approx(variance, rel=0.33)


def test_training_and_evaluation_are_the_same_function():
    torch.manual_seed(0)
    net, x = react_net_a(8), torch.randn(2, 3, 32, 32)
    trained = net.train()(x)
    assert torch.equal(net.eval()(x), trained)
    assert not list(net.buffers())


def test_the_check_has_nothing_to_say():
    import varshift

    torch.manual_seed(0)
    blocks = NormFreeBinaryPairBlock(3, 6, 2), NormFreeBinaryBlock(6, 6)
    net = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(96, 4))
    data = [(torch.randn(8, 3, 8, 8), torch.randint(0, 4, (8,))) for _ in range(2)]
    report = varshift.check(net, data)
    assert not report.findings
    assert report.gap.states["train"] == report.gap.states["eval"]


def test_both_training_steps_share_their_parameters():
    first, second = react_net_a(8, binary_weights=False), react_net_a(8)
    second.load_state_dict(first.state_dict())
    x = torch.randn(2, 3, 32, 32)
    assert not torch.equal(first(x), second(x))


def test_gradients_reach_every_parameter():
    torch.manual_seed(0)
    net = react_net_a(8)
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


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("make", [lambda: react_net_a(8), lambda: react_net_a(8, binary_weights=False)])
def test_agrees_with_the_processor_on_an_accelerator(make):
    torch.manual_seed(0)
    net, x = make().double(), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    out = net(x)
    out.sum().backward()
    expected = [parameter.grad.clone() for parameter in net.parameters()]
    net.zero_grad()
    net.cuda()
    other = net(x.cuda())
    torch.testing.assert_close(other.cpu(), out, rtol=1e-8, atol=1e-9)
    other.sum().backward()
    for parameter, gradient in zip(net.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad.cpu(), gradient, rtol=1e-7, atol=1e-8)
