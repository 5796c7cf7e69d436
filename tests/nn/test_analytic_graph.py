"""Networks with a forward of their own, traced and walked with their moments."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from varshift.functional import KalmanState
from varshift.nn import (
    AnalyticGraph,
    AnalyticNetwork,
    AnalyticNorm2d,
    AnalyticResidual,
    analytic_init_,
    propagate,
)


class Block(nn.Module):
    """A residual block as people write it."""

    def __init__(self, channels, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 2 * channels, 3, stride, 1)
        self.norm1 = AnalyticNorm2d(2 * channels)
        self.conv2 = nn.Conv2d(2 * channels, 2 * channels, 3, 1, 1)
        self.short = nn.Sequential(nn.Conv2d(channels, 2 * channels, 1, stride), AnalyticNorm2d(2 * channels))

    def forward(self, x):
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        y = F.dropout(y, 0.5, training=self.training)
        y = self.conv2(y)
        y += self.short(x)
        return y


class Net(nn.Module):
    """Wiring of many kinds: functions, methods, joins, sizes."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.block = Block(4, 2)
        self.scale = 0.5
        self.head = nn.Linear(16 * 4, 5)

    def forward(self, x):
        x = F.gelu(self.stem(x))
        x = self.scale * self.block(x) + 1.0
        x = torch.cat([x, x.tanh()], dim=1)
        x = F.avg_pool2d(x, 2)
        return self.head(x.view(x.size(0), -1))


def by_hand(net, x, state):
    """The same network, each step with its state."""
    x, state = propagate(nn.Sequential(net.stem, nn.GELU()), x, state)
    block = net.block
    branch = nn.Sequential(
        block.conv1, block.norm1, nn.ReLU(), nn.Dropout(0.5).train(net.training), block.conv2
    )
    x, state = AnalyticResidual(branch, block.short)(x, state)
    x, state = 0.5 * x + 1, KalmanState(0.5 * state.mean + 1, 0.25 * state.var)
    y, other = propagate(nn.Tanh(), x, state)
    x, state = (
        torch.cat([x, y], 1),
        KalmanState(*(torch.cat(parts) for parts in zip(state, other, strict=True))),
    )
    return propagate(nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), net.head), x, state)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return AnalyticNetwork(AnalyticGraph(Net()), [0.1, 0.2, -0.3], [1.0, 2.0, 0.5])


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_the_walk_is_the_network(net, training):
    net.train(training)
    x = torch.randn(6, 3, 10, 10)
    torch.manual_seed(1)
    y = net(x)
    torch.manual_seed(1)
    expected, state = by_hand(net.body.body, x, net.state())
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(net.moments(x).mean, state.mean)
    torch.testing.assert_close(net.moments(x).var, state.var)
    assert torch.equal(net(x), y) is not training  # functional dropout follows the mode of now


def test_life_as_a_module(net):
    x = torch.randn(2, 3, 10, 10)
    net.eval()
    expected = net(x)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        torch.testing.assert_close(twin(x), expected)
        twin.body.body.stem.weight.data.mul_(2.0)
        assert not torch.equal(twin(x), expected)  # its own parameters
    assert {name.removeprefix("body.body.") for name, _ in net.named_parameters()} == {
        name for name, _ in Net().named_parameters()
    }
    expected.pow(2).sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in net.parameters())
    torch.compiler.reset()
    compiled = torch.compile(copy.deepcopy(net), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-5)
    exported = torch.export.export(copy.deepcopy(net), (x,), strict=False)
    torch.testing.assert_close(exported.module()(x), expected, rtol=1e-4, atol=1e-5)


def test_initialisation_walks_through_it(net):
    analytic_init_(net, (3, 10, 10))
    mean, var = net.moments(torch.zeros(1, 3, 10, 10))
    torch.testing.assert_close(mean, torch.zeros(5), rtol=0, atol=1e-5)
    torch.testing.assert_close(var, torch.ones(5), rtol=1e-5, atol=0)


@pytest.mark.zoo
def test_a_published_network():
    from varshift.integrations import declare_torchvision_operators

    declare_torchvision_operators()
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    body = models.resnet18(num_classes=7, norm_layer=AnalyticNorm2d)
    net = AnalyticNetwork(AnalyticGraph(body), [0.0] * 3, [1.0] * 3)
    x = torch.randn(4, 3, 64, 64)
    signals = []
    body.layer1[0].bn1.register_forward_pre_hook(lambda module, inputs: signals.append(inputs))
    with torch.no_grad():
        y = net(x)
    assert y.shape == (4, 7)
    (signal, state), = signals  # fmt: skip
    stem = nn.Sequential(body.conv1, body.bn1, body.relu, body.maxpool, body.layer1[0].conv1)
    expected, (mean, var) = propagate(stem, x, net.state())
    torch.testing.assert_close(signal, expected)
    torch.testing.assert_close(state.mean, mean)
    torch.testing.assert_close(state.var, var)


class Dynamic(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Two(nn.Module):
    def forward(self, x, y):
        return x + y


class Odd(nn.Module):
    def forward(self, x):
        return torch.cumsum(x, 1)


class Named(nn.Module):
    def forward(self, x):
        return torch.add(x, other=x)


class Twice(nn.Module):
    def forward(self, x):
        return x + x


class Spread(nn.Module):
    def forward(self, x):
        return x, x


def test_a_signal_is_not_independent_of_itself():
    mean, var = AnalyticGraph(Twice())(torch.randn(2, 3), KalmanState(torch.ones(3), torch.ones(3)))[1]
    assert mean.tolist() == [2.0] * 3
    assert var.tolist() == [4.0] * 3


def test_refusals():
    x, state = torch.randn(2, 3), KalmanState(torch.zeros(3), torch.ones(3))
    with pytest.raises(ValueError, match="body of class Dynamic must be traceable"):
        AnalyticGraph(Dynamic())
    with pytest.raises(ValueError, match="must take one input, not 2"):
        AnalyticGraph(Two())
    with pytest.raises(ValueError, match="must be one whose moments are known"):
        AnalyticGraph(Odd())(x, state)
    with pytest.raises(ValueError, match="must take its signals by position"):
        AnalyticGraph(Named())(x, state)
    with pytest.raises(ValueError, match="must return one signal"):
        AnalyticGraph(Spread())(x, state)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_agrees_with_the_processor_on_an_accelerator(net):
    net, x = net.double().eval(), torch.randn(3, 3, 10, 10, dtype=torch.float64)
    net(x).pow(2).sum().backward()
    other = copy.deepcopy(net).cuda()
    other.zero_grad()
    torch.testing.assert_close(other(x.cuda()).cpu(), net(x), rtol=1e-8, atol=1e-9)
    other(x.cuda()).pow(2).sum().backward()
    for parameter, wanted in zip(other.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad.cpu(), wanted.grad, rtol=1e-7, atol=1e-8)
