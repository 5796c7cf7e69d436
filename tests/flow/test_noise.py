from __future__ import annotations

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from exported_flows import captured_by
from torch import Tensor, nn
from torch.distributions import Bernoulli, Normal

from varshift.flow import NoiseSite, capture


class Gate(nn.Module):
    """Drop path in the style that draws ``floor(keep + rand)``."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        keep = 0.9
        mask = keep + torch.rand((x.shape[0],) + (1,) * (x.ndim - 1), dtype=x.dtype)
        mask.floor_()
        return x.div(keep) * mask


class BernoulliGate(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        mask = x.new_empty((x.shape[0], 1, 1, 1)).bernoulli_(0.75)
        return x * mask.div_(0.75)


class BatchGate(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.empty(1, 1, 1, 1).bernoulli_(0.8)


class Block(nn.Module):
    """Drop block, rescaled by the realised keep fraction."""

    def forward(self, x: Tensor) -> Tensor:
        seeds = (torch.rand(x.shape[0], 1, *x.shape[2:]) < 0.05).to(x.dtype)
        mask = 1 - F.max_pool2d(seeds, 3, stride=1, padding=1)
        return x * mask * mask.numel() / mask.sum()


class DropConnect(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.bernoulli(torch.full_like(self.weight, 0.7))
        return F.linear(x.transpose(1, 3), self.weight * mask).transpose(1, 3)


class WeightDropout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(8, 8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, F.dropout(self.weight, 0.2, self.training))


class WeightFactor(WeightDropout):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * (0.9 + 0.2 * torch.rand_like(self.weight)))


class Locked(nn.Module):
    """One mask for all rows, drawn with dropout on ones."""

    def forward(self, x: Tensor) -> Tensor:
        mask = F.dropout(torch.ones(x.shape[0], x.shape[1], 1, 1), 0.4)
        return x * mask.expand_as(x)


class HandAlpha(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        mask = torch.empty_like(x).bernoulli_(0.8)
        return (x * mask - 1.7581 * (1 - mask)) * 0.9 + 0.3


class Layer(nn.Module):
    """Calls a function in its forward."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def masked_in_place(x: Tensor) -> Tensor:
    y = x.clone()
    y[torch.rand_like(y) < 0.15] = 0
    return y


def part_in_place(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, :2] = F.dropout(y[:, :2], 0.35)
    return y


def variational(x: Tensor) -> Tensor:
    mean, scale = x[:, :4], x[:, 4:].exp()
    return torch.cat([mean + scale * torch.randn_like(scale), mean], 1)


def seeded(x: Tensor) -> Tensor:
    return x * (torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) < 0.75)


# what it is, its kind, its rate
LAYERS: dict[str, tuple[nn.Module, str, float | None]] = {
    "dropout": (nn.Dropout(0.3), "dropout", 0.3),
    "inplace": (nn.Sequential(nn.ReLU(), nn.Dropout(0.15, inplace=True)), "dropout", 0.15),
    "dropout2d": (nn.Dropout2d(0.2), "channel_dropout", 0.2),
    "alpha": (nn.AlphaDropout(0.25), "alpha_dropout", 0.25),
    "feature_alpha": (nn.FeatureAlphaDropout(0.25), "feature_alpha_dropout", 0.25),
    "gate": (Gate(), "drop_path", 0.1),
    "bernoulli_gate": (BernoulliGate(), "drop_path", 0.25),
    "batch_gate": (BatchGate(), "drop_path", 0.2),
    "block": (Block(), "drop_block", None),
    "drop_connect": (DropConnect(), "weight_dropout", 0.3),
    "weight_dropout": (WeightDropout(), "weight_dropout", 0.2),
    "weight_factor": (WeightFactor(), "uniform", 0.1),
    "locked": (Locked(), "channel_dropout", 0.4),
    "hand_alpha": (HandAlpha(), "alpha_dropout", 0.2),
    "keep": (Layer(lambda x: x * (torch.rand_like(x) > 0.4) / 0.6), "dropout", 0.4),
    "channel_keep": (Layer(lambda x: x * (torch.rand(*x.shape[:2], 1, 1) > 0.4)), "channel_dropout", 0.4),
    "where": (Layer(lambda x: torch.where(torch.rand_like(x) < 0.1, 0.0, x)), "dropout", 0.1),
    "where_kept": (Layer(lambda x: torch.where(torch.rand_like(x) < 0.9, x, 0.0)), "dropout", 0.1),
    "masked_fill": (Layer(lambda x: x.masked_fill(torch.rand_like(x) < 0.1, 0.0)), "dropout", 0.1),
    "masked_in_place": (Layer(masked_in_place), "dropout", 0.15),
    "part_in_place": (Layer(part_in_place), "dropout", 0.35),
    "normal_threshold": (Layer(lambda x: x * (torch.randn_like(x) > 0)), "dropout", 0.5),
    "gaussian": (Layer(lambda x: x + torch.randn_like(x) * 0.25), "gaussian", 0.25),
    "gaussian_product": (Layer(lambda x: x * (1 + 0.35 * torch.randn_like(x))), "gaussian", 0.35),
    "gaussian_in_place": (Layer(lambda x: x + torch.empty_like(x).normal_(0, 0.5)), "gaussian", 0.5),
    "distribution": (Layer(lambda x: x * Normal(1.0, 0.3).sample(x.shape)), "gaussian", 0.3),
    "distribution_of_masks": (Layer(lambda x: x * Bernoulli(0.6).sample(x.shape)), "dropout", 0.4),
    "seeded": (Layer(seeded), "dropout", 0.25),
    "uniform": (Layer(lambda x: x + torch.empty_like(x).uniform_(-0.1, 0.3)), "uniform", 0.2),
    "relative": (Layer(lambda x: x + 0.1 * x.std() * torch.randn_like(x)), "gaussian", None),
    "variational": (Layer(variational), "gaussian", None),
    "rrelu": (nn.RReLU(0.1, 0.3), "rrelu", 0.1),
    "sampling": (Layer(lambda x: torch.bernoulli(x.sigmoid())), "sampling", None),
    "threshold_sampling": (Layer(lambda x: (torch.rand_like(x) < x.sigmoid()).to(x.dtype)), "sampling", None),
    "permutation": (Layer(lambda x: x[:, torch.randperm(x.shape[1])]), "permutation", None),
    "signs": (Layer(lambda x: x * (2 * torch.randint(0, 2, x.shape) - 1)), "other", None),
    "gumbel": (Layer(lambda x: F.gumbel_softmax(x, dim=1)), "other", None),
}


class Battery(nn.Module):
    """Every layer above in front of a norm of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({name: layer for name, (layer, _, _) in LAYERS.items()})
        self.norms = nn.ModuleDict({name: nn.BatchNorm2d(8) for name in LAYERS})

    def forward(self, x: Tensor) -> Tensor:
        return sum(self.norms[name](layer(x)) for name, layer in self.layers.items())  # type: ignore[return-value]


@pytest.fixture(scope="module", params=["exported", "recorded"])
def sites(request: pytest.FixtureRequest) -> dict[str, list[NoiseSite]]:
    flow = captured_by(request.param, Battery(), torch.rand(4, 8, 6, 6)).train
    assert flow is not None
    assert flow.method == request.param
    found: dict[str, list[NoiseSite]] = {name: [] for name in LAYERS}
    for site in flow.noises:
        found[site.name.split(".")[1]].append(site)
    return found


@pytest.mark.parametrize("name", LAYERS)
def test_kind_and_rate(sites: dict[str, list[NoiseSite]], name: str) -> None:
    _, kind, rate = LAYERS[name]
    (site,) = sites[name]
    assert site.kind == kind
    if kind == "drop_block":
        # Nine cells of a mask of 5 % seeds, fewer at the border of a map of 6x6.
        assert site.rate == pytest.approx(1 - 0.95 ** (16 / 6 * 16 / 6), abs=0.05)
    elif rate is None:
        assert site.rate is None
    else:
        assert site.rate == pytest.approx(rate, abs=1e-6)


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_reaches_its_own_norm_only(sites: dict[str, list[NoiseSite]], name: str) -> None:
    (site,) = sites[name]
    assert site.reaches == (f"norms.{name}",)
    # Weights and a softmax lie between four of them and their norm.
    behind_weights = ("drop_connect", "weight_dropout", "weight_factor", "gumbel")
    assert site.path == ("weight" if name in behind_weights else "direct")
    assert site.near == {f"norms.{name}": site.path}


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.1, batch_first=True)
        self.recurrent = nn.LSTM(8, 8, 2, dropout=0.3, batch_first=True)
        self.single = nn.GRU(8, 8, 1, batch_first=True)
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.recurrent(x)
        y, _ = self.single(y)
        y, _ = self.attention(y, y, y)
        y = F.scaled_dot_product_attention(y, y, y, dropout_p=0.2 if self.training else 0.0)
        weights = F.dropout(torch.softmax(y @ y.transpose(1, 2), -1), 0.15, self.training)
        return self.norm((weights @ y).transpose(1, 2))


@pytest.mark.parametrize("method", ["exported", "recorded"])
def test_attention_and_recurrence(method) -> None:
    result = captured_by(method, Attention(), torch.rand(2, 5, 8))
    assert result.train is not None
    assert result.eval is not None
    found = [(site.name, site.kind, site.rate, site.path) for site in result.train.noises]
    assert found == [
        ("recurrent", "recurrent_dropout", 0.3, "weight"),
        ("attention", "attention_dropout", 0.1, "weight"),
        ("", "attention_dropout", 0.2, "weight"),
        ("", "attention_dropout", 0.15, "weight"),
    ]
    assert result.eval.noises == ()


class Cuts(nn.Module):
    """Dropout by shape of its input."""

    def forward(self, x: Tensor) -> Tensor:
        return (
            F.dropout1d(x, 0.2).mean()
            + F.dropout2d(x[:, :, 0], 0.3).mean()
            + F.dropout3d(x[..., None, None]).mean()
        )


@pytest.mark.filterwarnings("ignore:dropout2d")
@pytest.mark.parametrize("method", ["exported", "recorded"])
def test_channel_dropout_by_rank(captured, method) -> None:
    flow = captured(Cuts(), 4, 6, 5, method=method).train
    assert [(site.kind, site.rate) for site in flow.noises] == [
        ("channel_dropout", 0.2),
        ("dropout", 0.3),
        ("channel_dropout", 0.5),
    ]


class Legacy(nn.Module):
    """The mask of the old days: ``x.data.new`` and in-place sampling."""

    def forward(self, x: Tensor) -> Tensor:
        mask = x.data.new(1, x.size(1), x.size(2)).bernoulli_(0.5)
        return x * (mask.div_(0.5)).expand_as(x)


def test_mask_from_legacy_constructor(captured) -> None:
    (site,) = captured(Legacy(), 7, 3, 5).train.noises
    assert site.kind == "dropout"
    assert site.rate == 0.5


class Quiet(nn.Module):
    """Random numbers that never meet the signal, and dropout that does nothing."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self_made = torch.rand(3) * 2
        return F.dropout(x, 0.5, training=False) + F.dropout(x, 0.0), self_made


@pytest.mark.parametrize("method", ["exported", "recorded"])
def test_no_site_without_noise_in_the_signal(captured, method) -> None:
    result = captured(Quiet(), 2, 3, method=method)
    assert result.train.noises == ()
    assert result.eval.noises == ()


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.second(self.drop(self.first(x))))


@pytest.mark.parametrize("method", ["exported", "recorded"])
def test_shared_dropout_module_is_several_sites(captured, method) -> None:
    sites = captured(Twice(), 2, 4, method=method).train.noises
    assert [site.name for site in sites] == ["drop", "drop"]
    assert sites[0].node < sites[1].node


class Chance(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if torch.rand(()) < 0.9 else x


def test_random_control_flow_is_named_as_a_limit(captured) -> None:
    result = captured(Chance(), 2, 4)
    assert result.method == "recorded"
    assert any("random number is read as a Python number" in limit for limit in result.limits)


@pytest.mark.parametrize("draw", [random.random, np.random.rand], ids=["python", "numpy"])
def test_random_numbers_from_elsewhere_are_named_as_a_limit(captured, draw) -> None:
    class Skipping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return x if self.training and draw() < 0.5 else self.layer(x)

    result = captured(Skipping(), 2, 4)
    (limit,) = result.limits
    assert "random numbers of Python or NumPy in train mode" in limit


class Recurrence(nn.Module):
    """One mask for the hidden state of all steps; the first state is zero."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.norm = nn.LSTMCell(4, 4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        state = memory = torch.zeros(x.shape[0], 4)
        mask = torch.empty(x.shape[0], 4).bernoulli_(0.5) / 0.5
        for step in x.unbind(1):
            state, memory = self.cell(step, (state * mask, memory))
        return self.norm(state)


@pytest.mark.parametrize("method", ["exported", "recorded"])
def test_locked_mask_of_a_recurrence_is_noise_from_the_second_step(captured, method) -> None:
    sites = captured(Recurrence(), 2, 3, 4, method=method).train.noises
    found = [(site.name, site.kind, site.rate, site.nearest) for site in sites]
    assert found == [("", "dropout", 0.5, "norm")] * 2


class Drawn(nn.Module):
    """Takes one of two ways by chance, or never."""

    def __init__(self, draw: str) -> None:
        super().__init__()
        self.draw, self.one, self.other = draw, nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        first = True
        if self.draw == "python":
            first = random.random() < 0.5
        elif self.draw == "torch":
            first = torch.rand(()).item() < 0.5
        return F.dropout(self.one(x) if first else self.other(x), 0.1, self.training)


@pytest.mark.parametrize(("draw", "by_chance"), [("python", True), ("torch", True), ("never", False)])
def test_a_flow_says_whether_chance_decides_what_runs(draw, by_chance):
    captured = capture(Drawn(draw), torch.randn(2, 4))
    assert captured.train.by_chance is captured.eval.by_chance is by_chance
