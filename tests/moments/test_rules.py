"""Every rule against brute force: the same network in training, many times on the same data."""

import pytest
import torch
from brute_force import measured
from torch import nn
from torch.nn import functional as F

from varshift.moments import predict


class Drop(nn.Module):
    """Hand-written noise, told by its name."""

    def __init__(self, kind, rate=0.3):
        super().__init__()
        self.kind, self.rate = kind, rate

    def forward(self, x):
        if not self.training:
            return x
        if self.kind == "uniform":
            return x + x * (self.rate * (2 * torch.rand_like(x) - 1))
        if self.kind == "factor":
            return x * (1 + self.rate * torch.randn_like(x))
        if self.kind == "term":
            return x + self.rate * torch.randn_like(x)
        if self.kind == "block":
            mask = 1 - F.max_pool2d((torch.rand_like(x) < self.rate / 9).to(x.dtype), 3, 1, 1)
            return x * mask * (mask.numel() / mask.sum())
        keep = 1 - self.rate
        if self.kind == "mask":
            return x * (torch.rand_like(x) < keep).to(x.dtype) / keep
        gate = x.new_empty((x.shape[0],) + (1,) * (x.dim() - 1)).bernoulli_(keep)
        return x * gate if self.kind == "unscaled path" else x * gate / keep


class Branches(nn.Module):
    """A trunk and a branch that share their ancestors."""

    def __init__(self, noise, alpha=1.0):
        super().__init__()
        self.first, self.noise = nn.Conv2d(3, 8, 3, padding=1), noise
        self.branch, self.alpha = nn.Conv2d(8, 8, 3, padding=1), alpha
        self.inner, self.norm = nn.BatchNorm2d(8), nn.BatchNorm2d(8)

    def forward(self, x):
        trunk = self.first(x)
        branch = self.noise(self.branch(F.relu(self.inner(trunk))))
        return self.norm(torch.add(trunk, branch, alpha=self.alpha))


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Dropout(0.3), nn.ReLU())
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.Sigmoid())
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x):
        x = self.first(x)
        return self.norm(x * self.gate(x))


class Joined(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.first, self.drop = nn.Conv2d(3, 8, 3), nn.Dropout(0.3)
        self.second, self.how = nn.Conv2d(8, 8, 3, padding=1), how
        self.norm = nn.BatchNorm2d(16 if how == "cat" else 8)

    def forward(self, x):
        x = F.relu(self.first(x))
        y = self.drop(x)
        if self.how == "cat":
            return self.norm(torch.cat([x, self.second(y)], 1))
        left, right = self.second(y).chunk(2, 1)
        return self.norm(torch.stack([right, left], 1).flatten(1, 2))


class Attention(nn.Module):
    def __init__(self, fused):
        super().__init__()
        self.embed, self.mix = nn.Linear(3 * 16, 16), nn.Linear(16, 48)
        self.fused, self.drop, self.noise = fused, nn.Dropout(0.2), nn.Dropout(0.3)
        self.out, self.norm = nn.Linear(16, 16), nn.BatchNorm1d(16)

    def forward(self, x):
        tokens = (
            x[:, :, :8, :8].unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
        )
        tokens = self.noise(self.embed(tokens))
        query, key, value = self.mix(tokens).chunk(3, -1)
        if self.fused:
            rate = 0.3 if self.training else 0.0
            mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=rate)
        else:
            mixed = self.drop((query @ key.transpose(1, 2) / 4).softmax(-1)) @ value
        return self.norm((tokens + self.out(mixed)).transpose(1, 2))


class Reparametrised(nn.Module):
    """Noise whose size another part of the network decides."""

    def __init__(self):
        super().__init__()
        self.mean, self.size, self.norm = nn.Linear(12, 8), nn.Linear(12, 8), nn.BatchNorm1d(8)
        self.second = nn.Sequential(nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8))

    def forward(self, x):
        mean, size = self.mean(x), (0.5 * self.size(x)).exp()
        return self.second(self.norm(mean + torch.randn_like(mean) * size if self.training else mean))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cells = nn.LSTM(6, 8, 2, batch_first=True, dropout=0.3)
        self.mix, self.norm = nn.Linear(8, 8), nn.BatchNorm1d(8)

    def forward(self, x):
        return self.norm(self.mix(self.cells(x)[0]).transpose(1, 2))


def conv(*layers, channels=8, dims=2):
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims - 1]
    return nn.Sequential(*layers, norm(channels))


def images(*shape):
    """Images whose neighbours are alike, with a mean of their own."""
    coarse = torch.randn(256, *(shape or (3, 10, 10)))
    return coarse.cumsum(-1) / 3 + 0.4


def pair(noise, *between, second=None, channels=8):
    """Two norms: noise between, so that the second one sees what the first makes of it."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        noise,
        *between,
        second or nn.Conv2d(8, channels, 3),
        nn.BatchNorm2d(channels),
    )


# Name, network, shape of the data, largest relative error of (variance with noise, ratios).
CASES = {
    "linear": lambda: (conv(nn.Dropout(0.3), nn.Linear(12, 8), dims=1), (12,)),
    "linear on tokens": lambda: (
        nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.4), nn.Linear(8, 8), nn.Flatten(0, 1), nn.BatchNorm1d(8)),
        (5, 6),
    ),
    "direct": lambda: (conv(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Dropout(0.5)), ()),
    "conv1d": lambda: (conv(nn.Dropout(0.3), nn.Conv1d(4, 8, 3, 2, 2, 2, 2), dims=1), (4, 20)),
    "conv2d grouped": lambda: (pair(nn.Dropout(0.3), second=nn.Conv2d(8, 8, 3, 2, 2, 2, 4)), ()),
    "conv2d valid": lambda: (pair(nn.Dropout(0.5), second=nn.Conv2d(8, 8, 3, padding="same")), ()),
    "conv2d reflected": lambda: (
        pair(nn.Dropout(0.5), second=nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")),
        (),
    ),
    "conv3d": lambda: (conv(nn.Dropout(0.3), nn.Conv3d(3, 8, (2, 3, 3)), dims=3), (3, 4, 5, 5)),
    "transposed 1d": lambda: (conv(nn.Dropout(0.3), nn.ConvTranspose1d(4, 8, 3, 2), dims=1), (4, 12)),
    "transposed 2d": lambda: (
        pair(nn.Dropout(0.3), second=nn.ConvTranspose2d(8, 8, 3, 2, 1, 1, groups=2)),
        (),
    ),
    "transposed 3d": lambda: (conv(nn.Dropout(0.3), nn.ConvTranspose3d(3, 8, 2, 2), dims=3), (3, 3, 4, 4)),
    "max pool": lambda: (pair(nn.Dropout(0.3), nn.MaxPool2d(2)), ()),
    "average pool": lambda: (pair(nn.Dropout(0.3), nn.AvgPool2d(3, 1, 1)), ()),
    "adaptive pool": lambda: (pair(nn.Dropout(0.3), nn.AdaptiveAvgPool2d(4)), ()),
    "adaptive max pool": lambda: (pair(nn.Dropout(0.3), nn.AdaptiveMaxPool2d(4)), ()),
    "upsample": lambda: (pair(nn.Dropout(0.3), nn.Upsample(scale_factor=2, mode="bilinear")), ()),
    "pixel shuffle": lambda: (pair(nn.Dropout(0.3), nn.PixelShuffle(2), second=nn.Conv2d(2, 8, 3)), ()),
    "leaky": lambda: (pair(nn.Dropout(0.4), nn.LeakyReLU(0.2)), ()),
    "swish behind conv": lambda: (
        pair(nn.Dropout(0.4), nn.Conv2d(8, 8, 3), nn.SiLU(), nn.Conv2d(8, 8, 1), nn.Hardswish()),
        (),
    ),
    "gelu in place of relu": lambda: (pair(nn.Dropout(0.4), nn.Conv2d(8, 8, 3), nn.GELU()), ()),
    "in place": lambda: (
        pair(
            nn.Dropout(0.4, inplace=True),
            nn.Conv2d(8, 8, 3),
            nn.ReLU(inplace=True),
            nn.Hardtanh(inplace=True),
        ),
        (),
    ),
    "prelu": lambda: (pair(nn.Dropout(0.4), nn.Conv2d(8, 8, 3), nn.PReLU(8)), ()),
    "glu": lambda: (pair(nn.Dropout(0.4), nn.GLU(1), second=nn.Conv2d(4, 8, 3)), ()),
    "group norm": lambda: (pair(nn.Dropout(0.4), nn.Conv2d(8, 8, 3), nn.GroupNorm(2, 8)), ()),
    "instance norm": lambda: (pair(nn.Dropout(0.4), nn.Conv2d(8, 8, 3), nn.InstanceNorm2d(8)), ()),
    "layer norm": lambda: (
        nn.Sequential(
            nn.Linear(12, 16), nn.Dropout(0.3), nn.LayerNorm(16), nn.Linear(16, 8), nn.BatchNorm1d(8)
        ),
        (12,),
    ),
    "channel dropout": lambda: (pair(nn.Dropout2d(0.3)), ()),
    "alpha dropout": lambda: (pair(nn.AlphaDropout(0.2)), ()),
    "uniform": lambda: (pair(Drop("uniform", 0.8)), ()),
    "gaussian": lambda: (pair(Drop("factor", 0.6)), ()),
    "additive": lambda: (pair(Drop("term", 0.5)), ()),
    "hand-written dropout": lambda: (pair(Drop("mask"), nn.ReLU()), ()),
    "shared ancestors": lambda: (Branches(nn.Dropout(0.4)), ()),
    "scaled sum": lambda: (Branches(nn.Dropout(0.4), 0.7), ()),
    "drop path": lambda: (Branches(Drop("path")), ()),
    "drop path unscaled": lambda: (Branches(Drop("unscaled path")), ()),
    "drop block": lambda: (pair(Drop("block")), ()),
    "squeeze and excite": lambda: (Gated(), ()),
    "concat": lambda: (Joined("cat"), ()),
    "split and stack": lambda: (Joined("split"), ()),
    "attention": lambda: (Attention(False), (3, 8, 8)),
    "attention in one operation": lambda: (Attention(True), (3, 8, 8)),
    "noise in the middle of noise": lambda: (
        pair(nn.Dropout(0.3), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Dropout2d(0.2), nn.ReLU(), nn.Dropout(0.2)),
        (),
    ),
    "noise of a size that the signal sets": lambda: (Reparametrised(), (12,)),
    "recurrent": lambda: (Recurrent(), (5, 6)),
    "randomised leaky": lambda: (pair(nn.Identity(), nn.Conv2d(8, 8, 3), nn.RReLU(0.1, 0.9)), ()),
}


@pytest.mark.parametrize("name", CASES)
def test_against_brute_force(name):
    net, shape = CASES[name]()
    data = images(*shape)
    truth = measured(net, data)
    prediction = predict(net, data)
    assert {layer.name for layer in prediction.layers} == set(truth), prediction.limits
    assert not prediction.limits
    worst = 0.0
    for layer in prediction.layers:
        noise, local, ratio = truth[layer.name]
        worst = max(worst, abs(layer.noise_share - noise), abs(layer.local_ratio / local - 1))
        worst = max(worst, abs(layer.ratio / ratio - 1))
    # 256 values per channel, and noise that is drawn, not computed: known to sqrt(2 / 256).
    few = ("layer norm", "noise of a size that the signal sets")
    assert worst < ((2 / 256) ** 0.5 if name in few else 0.025)


class Standardised(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.first, self.second, self.norm = nn.Linear(8, width), nn.Linear(width, 8), nn.BatchNorm1d(8)

    def forward(self, x):
        x = F.dropout(self.first(x), 0.3, self.training)
        x = (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, keepdim=True) + 1e-5)
        return self.norm(self.second(x))


def test_norm_per_sample_written_by_hand_is_uncertain():
    """Over many features its divisor is nearly the same in every draw, over few it is not."""
    net, data = Standardised(128), torch.randn(256, 8)
    _, local, ratio = measured(net, data)["norm"]
    layer = predict(net, data).layer("norm")
    assert layer.confidence == "low"
    assert (layer.local_ratio, layer.ratio) == pytest.approx((local, ratio), rel=0.1)
    prediction = predict(Standardised(16), data)
    assert prediction.layer("norm").ratio is None
    assert any("'div' could not be followed (it divides by noise)" in limit for limit in prediction.limits)


def test_a_function_that_is_in_no_table_is_followed_where_torch_says_that_it_is_one():
    class Sinc(nn.Module):
        def forward(self, x):
            return torch.sinc(x)

    net = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.4), Sinc(), nn.Linear(8, 8), nn.BatchNorm1d(8))
    data = torch.randn(256, 8)
    noise, local, ratio = measured(net, data)["4"]
    layer = predict(net, data).layer("4")
    assert layer.noise_share == pytest.approx(noise, abs=0.025)
    assert (layer.local_ratio, layer.ratio) == pytest.approx((local, ratio), rel=0.025)
    assert layer.confidence == "high"
