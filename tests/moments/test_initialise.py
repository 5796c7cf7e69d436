"""Initialisation of whole networks: what surrounds each layer, and what becomes of the variance."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from varshift import DataError
from varshift.moments import initialise_network_
from varshift.nn.init import dropout_corrected_gain


class Deep(nn.Module):
    """Functional activations and dropout between linear layers, or none."""

    def __init__(self, depth, activation, p):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(256, 256) for _ in range(depth))
        self.activation, self.p = activation, p

    def forward(self, x):
        for layer in self.layers[:-1]:
            x = F.dropout(self.activation(layer(x)), self.p, self.training)
        return self.layers[-1](x)


@pytest.mark.parametrize("p", [0.0, 0.3, 0.5])
def test_keeps_the_variance_of_a_deep_network_with_dropout(p):
    torch.manual_seed(0)
    net = Deep(20, F.relu, p)
    done = initialise_network_(net)
    assert [layer.activation for layer in done] == ["identity"] + ["relu"] * 19
    assert [layer.keep_in for layer in done] == [1.0] + [pytest.approx(1 - p)] * 19
    # one draw of 20 random layers scatters by about exp(sqrt(20 * 5 / 256)); torch's own start is 1e-8
    with torch.no_grad():
        assert 0.3 < float(net(torch.randn(512, 256)).var()) < 3


def test_every_filter_has_the_norm_of_the_formula():
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.GELU(), nn.Dropout2d(0.2), nn.MaxPool2d(2),
        nn.Conv2d(16, 8, 3, groups=2), nn.LeakyReLU(0.2), nn.Flatten(), nn.Dropout(0.4), nn.LazyLinear(5),
    )  # fmt: skip
    net(torch.randn(2, 3, 16, 16))
    done = {layer.name: layer for layer in initialise_network_(net, shape=(3, 16, 16))}
    assert done["5"].activation == "gelu"
    assert done["5"].keep_in == pytest.approx(0.8)
    assert done["5"].output_activation == "leaky_relu"
    assert done["5"].keep_out == pytest.approx(0.6)
    for name, gain in (
        ("0", 1.0),
        ("5", dropout_corrected_gain("gelu", keep_in=0.8)),
        ("9", dropout_corrected_gain(lambda x: F.leaky_relu(x, 0.2), keep_in=0.6)),
    ):
        norms = net[int(name)].weight.flatten(1).norm(dim=1)
        torch.testing.assert_close(norms, torch.full_like(norms, gain), rtol=1e-5, atol=0)
    assert (net[9].bias == 0).all()


def test_uniform_noise_counts_as_the_dropout_that_is_as_strong():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(32, 32), nn.Linear(32, 32)

        def forward(self, x):
            x = self.one(x).relu()
            return self.two(x * (1 + 0.6 * (2 * torch.rand_like(x) - 1)) if self.training else x)

    done = initialise_network_(Noisy(), shape=(32,))
    assert done[1].keep_in == pytest.approx(3 / (3 + 0.36), rel=1e-3)


def test_a_failure_changes_nothing():
    class Refuses(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            raise RuntimeError("no")

    net = Refuses()
    before = net.layer.weight.clone()
    with pytest.raises(DataError, match="shape="):
        initialise_network_(net)
    assert torch.equal(net.layer.weight, before)
