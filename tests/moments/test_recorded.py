"""Networks that are recorded operation by operation predict as well as exported ones."""

import pytest
import torch
from torch import nn

from varshift.moments import predict

LAYERS = {
    "linear": (lambda bias: nn.Linear(6, 8, bias=bias), (6,), nn.BatchNorm1d),
    "linear of tokens": (lambda bias: nn.Linear(5, 5, bias=bias), (8, 5), nn.BatchNorm1d),
    "conv1d": (lambda bias: nn.Conv1d(6, 8, 3, bias=bias), (6, 9), nn.BatchNorm1d),
    "conv2d": (lambda bias: nn.Conv2d(6, 8, 3, bias=bias), (6, 9, 9), nn.BatchNorm2d),
    "grouped": (lambda bias: nn.Conv2d(8, 8, 3, groups=8, bias=bias), (8, 9, 9), nn.BatchNorm2d),
    "conv3d": (lambda bias: nn.Conv3d(3, 8, 3, bias=bias), (3, 5, 5, 5), nn.BatchNorm3d),
    "conv_transpose1d": (lambda bias: nn.ConvTranspose1d(6, 8, 3, bias=bias), (6, 9), nn.BatchNorm1d),
    "conv_transpose2d": (lambda bias: nn.ConvTranspose2d(6, 8, 3, bias=bias), (6, 5, 5), nn.BatchNorm2d),
}


class Recorded(nn.Module):
    """What it does depends on its input, so that it cannot be exported."""

    def __init__(self, layer, norm):
        super().__init__()
        self.drop, self.layer, self.norm = nn.Dropout(0.4), layer, norm(8)

    def forward(self, x):
        x = x if float(x.sum()) < 1e9 else -x
        return self.norm(self.layer(self.drop(x.relu())))


@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_without_bias_is_followed_like_one_whose_bias_is_zero(kind):
    build, shape, norm = LAYERS[kind]
    figures = []
    for bias in (True, False):
        torch.manual_seed(0)
        layer = build(bias)
        if bias:
            nn.init.zeros_(layer.bias)
        net = Recorded(layer, norm)
        torch.manual_seed(1)
        with torch.no_grad():
            for _ in range(60):
                net(torch.randn(64, *shape))
        prediction = predict(net, shape=shape)
        assert not any("followed" in limit for limit in prediction.limits)
        figures.append(prediction.layer("norm"))
    biased, free = figures
    assert free.ratio < 0.9
    assert free.ratio == pytest.approx(biased.ratio, rel=1e-4)
    assert free.noise_share == pytest.approx(biased.noise_share, rel=1e-4)
    assert free.confidence == biased.confidence


class Residual(nn.Module):
    """A block whose activations and sum write into their first operand, or not."""

    def __init__(self, in_place):
        super().__init__()
        self.in_place = in_place
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(2))
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))

    def forward(self, x):
        out = x
        for norm, conv in zip(self.norms, self.convs, strict=True):
            out = conv(nn.functional.relu(norm(out), inplace=self.in_place))
        if self.in_place:
            out += x
            return out
        return out + x


def test_operations_in_place_predict_like_the_same_operations_out_of_place():
    layers = []
    for in_place in (False, True):
        torch.manual_seed(0)
        stages = [nn.Conv2d(3, 8, 3), nn.Dropout(0.3), Residual(in_place)]
        stages += [nn.Conv2d(8, 8, 3, stride=2), Residual(in_place), Residual(in_place)]
        stages += [nn.Conv2d(8, 8, 3, stride=2), Residual(in_place)]
        net = nn.Sequential(*stages)
        torch.manual_seed(1)
        with torch.no_grad():
            for _ in range(30):
                net(torch.randn(16, 3, 20, 20))
        layers.append(predict(net, shape=(3, 20, 20)).layers)
    assert [layer.ratio for layer in layers[0]] == [layer.ratio for layer in layers[1]]
