"""The shape of an input is taken from what a network states, and from nothing else."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import varshift as vs
from varshift.moments import stated_shape


def convolutions():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.4), nn.Conv2d(8, 8, 3),
        nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.4), nn.Conv2d(8, 12, 3), nn.BatchNorm2d(12), nn.Flatten(1),
    )  # fmt: skip


class Normalised(nn.Module):
    """A network on vectors that standardises its input by hand."""

    def __init__(self):
        super().__init__()
        self.head, self.norm = nn.Linear(5, 4), nn.BatchNorm1d(4)

    def forward(self, x):
        return self.norm(F.dropout(self.head((x - 0.5) * 2), 0.3, self.training))


class Picks(Normalised):
    def forward(self, x):
        return super().forward(x[:, :5])


class Embeds(Normalised):
    def __init__(self):
        super().__init__()
        self.mix = nn.Conv1d(1, 1, 3, padding=1)

    def forward(self, x):
        return super().forward(self.mix(x[:, None])[:, 0])


class Scaled(Normalised):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return super().forward(x * self.scale)


class Pools(Normalised):
    def forward(self, x):
        return super().forward(x.reshape(len(x), -1, 5).mean(1))


def configured(size, **names):
    net = convolutions()
    for name, settings in (names or {"default_cfg": {"input_size": size}}).items():
        setattr(net, name, settings)
    return net


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (lambda: configured((1, 12, 12)), (1, 12, 12)),
        (lambda: configured(None, pretrained_cfg={"input_size": [1, 10, 10]}), (1, 10, 10)),
        (lambda: nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)), (6,)),
        (lambda: nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(7, 2)), (7,)),
        (Normalised, (5,)),
    ],
    ids=["default_cfg", "pretrained_cfg", "linear", "flattened", "standardised"],
)
def test_a_stated_shape_is_taken(build, shape):
    assert stated_shape(build()) == shape


@pytest.mark.parametrize(
    "build",
    [
        convolutions,
        lambda: configured((3, 12, 12)),  # another number of channels than it takes
        lambda: configured(224),
        lambda: nn.Sequential(convolutions(), nn.Linear(192, 3)),
        lambda: nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4)),
        lambda: nn.Sequential(nn.BatchNorm1d(4)),
        Picks,
        Pools,
        Embeds,
        Scaled,
    ],
    ids=["convolutions", "wrong channels", "a bare number", "linear at the end", "a norm first", "no weights",
         "features that are picked", "features that are pooled", "a convolution first", "a weight first"],
)  # fmt: skip
def test_any_other_shape_is_asked_for(build):
    with pytest.raises(vs.DataError, match="shape="):
        stated_shape(build())


def test_recalibration_without_data_writes_nothing_for_a_guessed_extent():
    torch.manual_seed(0)
    net = convolutions()
    with torch.no_grad():
        for _ in range(100):
            net(torch.randn(64, 1, 8, 8).cumsum(-1) / 2)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(vs.DataError, match="shape="):
        vs.recalibrate(net)
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())


def test_the_shape_that_was_taken_is_named():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.BatchNorm1d(8))
    with torch.no_grad():
        for _ in range(100):
            net(torch.randn(64, 6))
    handle = vs.recalibrate(net)
    assert handle.layers[0].updated
    assert "without data, for inputs of shape (6,)" in repr(handle)
