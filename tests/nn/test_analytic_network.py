"""Networks that carry their moments: every rule against simulation, initialisation, training, surgery."""

import copy

import pytest
import torch
from torch import nn

from varshift.functional import KalmanState, channel_moments
from varshift.nn import (
    AnalyticNetwork,
    AnalyticNorm1d,
    AnalyticNorm2d,
    AnalyticResidual,
    Dropout,
    GaussianDropout,
    ScaledStdConv2d,
    ThresholdedLinearUnit,
    analytic_init_,
    moment_rule,
    propagate,
)


def white(shape, mean, var, seed=0):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(*shape, generator=generator, dtype=torch.float64)
    axes = (1, -1, *[1] * (len(shape) - 2))
    return mean.view(axes) + var.sqrt().view(axes) * noise


MEAN = torch.tensor([0.4, -0.7, 1.2, 0.1], dtype=torch.float64)
VAR = torch.tensor([1.0, 0.5, 2.0, 0.2], dtype=torch.float64)
# Modules whose moments are exact for independent Gaussian elements, and the extents they are tried on.
EXACT = [
    (nn.Identity(), (5,)),
    (nn.Linear(4, 3), ()),
    (nn.Conv1d(4, 6, 3, groups=2, dilation=2), (9,)),
    (nn.Conv2d(4, 3, 3, padding=1, stride=2), (5, 4)),
    (nn.Conv2d(4, 3, (2, 3), padding=(1, 2), dilation=(1, 2), bias=False), (4, 5)),
    (nn.Conv2d(4, 3, (3, 5), padding="same"), (4, 5)),
    (nn.Conv2d(4, 4, 3, padding="valid", groups=4), (4, 5)),
    (nn.Conv3d(4, 2, 2, padding=1), (2, 3, 2)),
    (nn.ConvTranspose1d(4, 3, 3, stride=2, output_padding=1), (3,)),
    (nn.ConvTranspose2d(4, 6, 3, stride=(2, 1), padding=1, groups=2, dilation=(1, 2)), (3, 4)),
    (ScaledStdConv2d(4, 3, 3, padding=1), (4, 4)),
    (nn.ReLU(inplace=True), ()),
    (nn.LeakyReLU(0.2), ()),
    (nn.PReLU(init=-0.3), ()),
    (nn.PReLU(4), (3,)),
    (nn.ReLU6(), ()),
    (nn.Hardtanh(-0.5, 1.5), ()),
    (nn.Hardsigmoid(), ()),
    (nn.Hardswish(), ()),
    (nn.Hardshrink(0.4), ()),
    (nn.Softshrink(0.4), ()),
    (nn.Threshold(0.3, -1.0), ()),
    (nn.ELU(0.7), ()),
    (nn.CELU(1.7), ()),
    (nn.SELU(), ()),
    (nn.SiLU(inplace=True), ()),
    (nn.Mish(), ()),
    (nn.Sigmoid(), ()),
    (nn.Tanh(), ()),
    (nn.Softplus(2.0), ()),
    (nn.LogSigmoid(), ()),
    (nn.Tanhshrink(), ()),
    (nn.GELU(), ()),
    (nn.GELU("tanh"), ()),
    (ThresholdedLinearUnit(4, init=0.2), (2, 2)),
    (nn.AvgPool2d((2, 3)), (4, 6)),
    (nn.AvgPool2d(3, stride=2, padding=1), (5, 4)),
    (nn.AvgPool2d(2, divisor_override=3), (4, 4)),
    (nn.AvgPool1d(3), (9,)),
    (nn.AdaptiveAvgPool2d((2, 3)), (5, 7)),
    (nn.MaxPool2d(2), (4, 4)),
    (nn.MaxPool1d(3, stride=1), (7,)),
    (nn.AdaptiveMaxPool2d(1), (3, 2)),
    (nn.Upsample(scale_factor=2), (3, 2)),
    (nn.ZeroPad2d((1, 2, 0, 1)), (3, 2)),
    (nn.PixelShuffle(2), (2, 2)),
    (nn.PixelUnshuffle(2), (2, 2)),
    (nn.ChannelShuffle(2), (2, 2)),
    (nn.Flatten(), (2, 2)),
]


@pytest.mark.parametrize(("module", "size"), EXACT, ids=lambda value: str(value).replace(" ", ""))
def test_every_rule_against_simulation(module, size):
    torch.manual_seed(0)
    module = copy.deepcopy(module).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, 0.3, 0.5)
    number = 400_000 // max(1, torch.Size(size).numel())
    x = white((number, 4, *size), MEAN, VAR)
    with torch.no_grad():
        y, state = propagate(module, x, KalmanState(MEAN, VAR))
    found = channel_moments(y)
    assert state.mean.shape == found.mean.shape
    # seven standard errors: each channel has at least as many independent values as samples
    error = 7 / number**0.5
    assert ((state.mean - found.mean).abs() <= error * found.var.sqrt() + 1e-12).all()
    kurtosis = ((y.transpose(0, 1).flatten(1) - found.mean[:, None]) ** 4).mean(1)
    assert ((state.var - found.var).abs() <= error * kurtosis.sqrt() + 1e-12).all()


def test_noise_and_norms_on_the_way():
    state, x = KalmanState(MEAN, VAR), white((8, 4, 3, 3), MEAN, VAR)
    for noise in (
        nn.Dropout(0.4),
        nn.Dropout2d(0.4),
        nn.AlphaDropout(0.2),
        Dropout(0.3),
        GaussianDropout(0.3),
    ):
        for mode in (True, False):
            assert propagate(noise.train(mode), x, state)[1] is state
    norm = nn.BatchNorm2d(4).double()
    nn.init.constant_(norm.weight, 3.0)
    nn.init.constant_(norm.bias, -1.0)
    _, after = propagate(norm, x, state)
    assert after.mean.tolist() == [-1.0] * 4
    assert after.var.tolist() == [9.0] * 4
    _, after = propagate(nn.BatchNorm2d(4, affine=False).double(), x, state)
    assert after.var.tolist() == [1.0] * 4


def wide(depth=4, width=256):
    layers, before = [], 64
    for _ in range(depth):
        layers += [nn.Linear(before, width), AnalyticNorm1d(width), nn.ReLU()]
        before = width
    return nn.Sequential(*layers, nn.Linear(before, 8), AnalyticNorm1d(8))


def test_wide_networks_on_white_input_against_simulation():
    """Where many inputs add up, Gaussian and uncorrelated is what random layers are."""
    torch.manual_seed(0)
    net = AnalyticNetwork(wide(), [0.5] * 64, [2.0] * 64).double()
    x = white((4000, 64), *net.state())
    signal, state = x, net.state()
    with torch.no_grad():
        for module in net.body:
            if isinstance(module, AnalyticNorm1d):
                real = channel_moments(signal)
                ratio = (real.var.mean() / state.var.mean()).item()
                assert 0.9 < ratio < 1.1
                assert ((real.mean - state.mean) / state.var.sqrt()).abs().mean() < 0.05
            signal, state = propagate(module, signal, state)
    real = channel_moments(signal)
    assert (real.mean.abs() < 0.2).all()


@pytest.mark.parametrize(("padding", "bound"), [(0, 0.04), (1, 0.1)])
def test_white_images_through_convolutions(padding, bound):
    """Borders make positions unlike: moments are exact behind one padded layer, less so behind the next."""
    torch.manual_seed(0)
    body = nn.Sequential(
        nn.Conv2d(8, 64, 3, padding=padding), AnalyticNorm2d(64), nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=padding, stride=2), AnalyticNorm2d(64), nn.SiLU(),
        nn.Conv2d(64, 64, 3, padding=padding, groups=2),
    )  # fmt: skip
    net = AnalyticNetwork(body, [0.5] * 8, [1.0] * 8).double()
    x = white((300, 8, 11, 11), *net.state())
    with torch.no_grad():
        real, state = channel_moments(net(x)), net.moments(x)
    assert (real.var / state.var).log().abs().mean() < 2 * bound
    assert ((real.mean - state.mean) / state.var.sqrt()).abs().mean() < bound


def test_training_is_evaluation_and_no_sample_sees_another():
    torch.manual_seed(0)
    net, x = AnalyticNetwork(wide(2, 16), [0.0] * 64, [1.0] * 64).double(), white((6, 64), *KalmanState(
        torch.zeros(64, dtype=torch.float64), torch.ones(64, dtype=torch.float64)))  # fmt: skip
    trained = net.train()(x)
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
    assert torch.equal(net.eval()(x), trained)
    assert torch.equal(net(x), trained)
    torch.testing.assert_close(
        torch.cat([net.train()(row[None]) for row in x]), trained, rtol=1e-12, atol=1e-12
    )
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in net.named_buffers())
    assert set(buffers) == {"mean", "var"}


def test_gradients_reach_weights_through_the_moments():
    """The output keeps still when a weight in front of a norm is scaled: only the moments see to that."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1, bias=False), AnalyticNorm2d(5, eps=0.0), nn.ReLU(),
                         nn.Conv2d(5, 4, 3, stride=2, bias=False), AnalyticNorm2d(4, eps=0.0))  # fmt: skip
    net = AnalyticNetwork(body, [0.3, 0.0, -0.2], [1.0, 2.0, 0.5]).double()
    x = white((2, 3, 7, 7), *net.state())
    net(x).pow(3).mean().backward()
    for conv in (body[0], body[3]):
        along = (conv.weight * conv.weight.grad).flatten(1)
        assert (along.sum(1).abs() < 1e-12 * (1 + along.abs().sum(1))).all()
        assert (along.abs().sum(1) > 1e-4).all()


def test_initialisation():
    torch.manual_seed(0)
    head = nn.Linear(6, 10)
    branch = nn.Sequential(
        nn.Conv2d(6, 6, 3, padding=1), nn.ELU(), nn.ConvTranspose2d(6, 6, 3, padding=1, groups=2)
    )
    body = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, stride=2), nn.SiLU(), AnalyticResidual(branch),
                         nn.MaxPool2d(2), nn.Flatten(), nn.Linear(24, 6), nn.Tanh(), head)  # fmt: skip
    net = AnalyticNetwork(body, [100.0, 0.0, -3.0], [400.0, 1.0, 0.1])
    body[1].eval()
    directions = body[0].weight.detach().clone()
    kept = head.weight.detach().clone()
    assert analytic_init_(net, (3, 8, 8), skip=[head]) is net
    assert body.training
    assert not body[1].training
    assert torch.equal(head.weight, kept)
    ratio = body[0].weight / directions
    assert (ratio.flatten(1).std(1) < 1e-6).all()
    x, state = torch.zeros(1, 3, 8, 8), net.state()
    for module in body[:-1]:
        x, state = propagate(module, x, state)
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            torch.testing.assert_close(state.mean, torch.zeros(6), rtol=0, atol=1e-4)
            torch.testing.assert_close(state.var, torch.ones(6), rtol=1e-5, atol=0)
    _, state = propagate(branch, torch.zeros(1, 6, 4, 4), KalmanState(*propagate(body[:2], torch.zeros(1, 3, 8, 8), net.state())[1]))  # fmt: skip  # noqa: E501
    torch.testing.assert_close(state.var, torch.ones(6), rtol=1e-5, atol=0)


def test_initialisation_keeps_the_signal_where_it_would_be_lost():
    """Ten layers, measured on white input."""
    torch.manual_seed(0)
    layers = [part for _ in range(10) for part in (nn.Linear(256, 256), nn.ReLU())]
    net = AnalyticNetwork(nn.Sequential(*layers, nn.Linear(256, 256)), [0.0] * 256, [1.0] * 256)
    x = torch.randn(500, 256)
    with torch.no_grad():
        assert net(x).var(0).mean() < 1e-6
        analytic_init_(net, (256,))
        assert 0.5 < net(x).var(0).mean() < 2


def test_nothing_pulls_back_what_is_louder_than_predicted():
    """A limit of the method, as the documentation derives it for wide layers with ReLU."""
    torch.manual_seed(0)
    layers = [part for _ in range(6) for part in (nn.Linear(512, 512), nn.ReLU())]
    net = AnalyticNetwork(nn.Sequential(*layers, nn.Linear(512, 512)), [0.0] * 512, [1.0] * 512).double()
    analytic_init_(net, (512,))
    x, loud = 10 * white((100, 512), *net.state()), None
    with torch.no_grad():
        for module in net.body:
            x = module(x)
            if isinstance(module, nn.Linear):
                size = x.square().mean().item()
                if loud is not None:
                    share = 2 / (2 - 2 / torch.pi)  # half of 1 / Var relu
                    expected = share * (loud - 2 / torch.pi * loud**0.5 + 1 / torch.pi)
                    # samples turn alike with depth, so their mean does not even out one draw of weights
                    assert abs(size / expected - 1) < 0.2
                loud = size
    assert loud > 400


def test_initialisation_of_shared_dead_and_biasless_layers():
    shared = nn.Linear(4, 4)
    net = AnalyticNetwork(nn.Sequential(shared, shared), [0.0] * 4, [1.0] * 4)
    analytic_init_(net, (4,))
    assert torch.allclose(propagate(shared, torch.zeros(1, 4), net.state())[1].var, torch.ones(4))
    dead = nn.Linear(4, 4, bias=False)
    nn.init.zeros_(dead.weight)
    analytic_init_(AnalyticNetwork(dead, [1.0] * 4, [1.0] * 4), (4,))
    assert not dead.weight.any()
    biasless = AnalyticNetwork(nn.Linear(4, 3, bias=False), [5.0] * 4, [1.0] * 4)
    mean, var = analytic_init_(biasless, (4,)).moments(torch.zeros(1, 4))
    assert torch.allclose(var, torch.ones(3))
    assert (mean.abs() > 0.01).all()
    with pytest.raises(ValueError, match="must be a plain parameter"):
        analytic_init_(AnalyticNetwork(ScaledStdConv2d(3, 2, 3), [0.0] * 3, [1.0] * 3), (3, 8, 8))
    frozen = AnalyticNetwork(nn.Sequential(nn.Linear(4, 4), nn.Bilinear(4, 4, 2)), [0.0] * 4, [1.0] * 4)
    with pytest.raises(ValueError, match="module of class Bilinear"):
        analytic_init_(frozen, (4,))
    assert "propagate_moments" not in frozen.body[0].__dict__  # nothing is left behind


def test_a_deep_plain_network_trains_that_does_not_without():
    """Twelve layers with ReLU on 8x8 digits, torch's own initial weights, the same steps."""
    datasets = pytest.importorskip("sklearn.datasets")
    digits = datasets.load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    y = torch.tensor(digits.target)
    losses = {}
    for norm in (False, True):
        torch.manual_seed(0)
        layers, before = [], 1
        for depth in range(12):
            layers.append(nn.Conv2d(before, 16, 3, padding=1, stride=2 if depth in (4, 8) else 1))
            layers += [AnalyticNorm2d(16), nn.ReLU()] if norm else [nn.ReLU()]
            before = 16
        net = AnalyticNetwork.from_data(nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 10)), x)
        optimiser = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
        for _ in range(4):
            for batch in torch.randperm(1500).split(100):
                loss = nn.functional.cross_entropy(net(x[batch]), y[batch])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        with torch.no_grad():
            output = net.eval()(x[1500:])
        losses[norm] = nn.functional.cross_entropy(output, y[1500:]).item()
    assert losses[False] > 2.2  # ln 10 is 2.30
    assert losses[True] < 1.5


def test_a_subclass_with_a_forward_of_its_own_is_not_taken_for_its_base():
    class Doubled(nn.ReLU):
        def forward(self, x):
            return 2 * super().forward(x)

    class Renamed(nn.ReLU):
        pass

    x, state = torch.randn(2, 3), KalmanState(torch.zeros(3), torch.ones(3))
    with pytest.raises(ValueError, match="module of class Doubled must be one whose moments are known"):
        propagate(Doubled(), x, state)
    assert torch.equal(propagate(Renamed(), x, state)[1].var, propagate(nn.ReLU(), x, state)[1].var)

    @moment_rule(Doubled)
    def doubled(module, state, before, after):
        mean, var = propagate(nn.ReLU(), torch.zeros(1, 1), state)[1]
        return KalmanState(2 * mean, 4 * var)

    assert torch.allclose(propagate(Doubled(), x, state)[1].mean, torch.full((3,), 0.7978846))

    class Own(nn.Module):
        def forward(self, x):
            return x + 1

        def propagate_moments(self, state, before, after):
            return KalmanState(state.mean + 1, state.var)

    assert propagate(Own(), x, state)[1].mean.tolist() == [1.0, 1.0, 1.0]


def test_hooks_see_signals_only():
    seen = []
    net = AnalyticNetwork(nn.Sequential(nn.Linear(3, 4), nn.SiLU(), AnalyticNorm1d(4)), [0.0] * 3, [1.0] * 3)
    net.body[1].register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape)))
    net(torch.randn(5, 3))
    assert seen == [(5, 4)]


def test_weights_under_a_parametrization():
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(3, 4))
    net = AnalyticNetwork(nn.Sequential(layer, AnalyticNorm1d(4)), [0.0] * 3, [1.0] * 3)
    assert torch.allclose(net.moments(torch.zeros(1, 3)).var, torch.ones(4), atol=1e-3)
    net(torch.randn(5, 3)).pow(3).sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


def test_refusals():
    body = nn.Linear(3, 3)
    with pytest.raises(ValueError, match="mean has 2 values and var has 3"):
        AnalyticNetwork(body, [0.0] * 2, [1.0] * 3)
    with pytest.raises(ValueError, match="must be at least 0"):
        AnalyticNetwork(body, [0.0] * 3, [1.0, -1.0, 1.0])
    with pytest.raises(ValueError, match=r"mean\[0\]=nan"):
        AnalyticNetwork(body, [float("nan")] * 3, [1.0] * 3)
    net = AnalyticNetwork(body, [0.0] * 3, torch.ones(3))
    with pytest.raises(ValueError, match="must have 3 channels"):
        net(torch.randn(2, 4))
    state = net.state()
    with pytest.raises(ValueError, match="must have 2 axes"):
        propagate(body, torch.randn(2, 3, 3), state)
    with pytest.raises(ValueError, match="mode='bilinear'"):
        propagate(nn.Upsample(scale_factor=2, mode="bilinear"), torch.randn(2, 3, 3, 3), state)
    with pytest.raises(ValueError, match="they must be equal"):
        AnalyticResidual(nn.Linear(3, 1))(torch.randn(2, 3), state)
    with pytest.raises(ValueError, match="module of class Softmax must be one whose moments are known"):
        propagate(nn.Softmax(1), torch.randn(2, 3), state)
    with pytest.raises(ValueError, match=r"shape\[0\]=0"):
        analytic_init_(net, (0,))
