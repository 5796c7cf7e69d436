from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from varshift.flow import Flow

METHODS = ["exported", "recorded"]


def paths(flow: Flow) -> list[tuple[str, str | None, str]]:
    return [(site.name, site.nearest, site.path) for site in flow.noises]


class Direct(nn.Module):
    """Everything that lies between is transparent."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.drop, self.norm = nn.Conv2d(3, 4, 3), nn.Dropout(0.3), nn.BatchNorm2d(8)
        self.scale = nn.Parameter(torch.ones(8, 1, 1))
        self.late = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        y = F.avg_pool2d(F.relu(self.drop(x)) + 0.5, 2)
        y = torch.cat([y, F.avg_pool2d(x, 2)], 1) * self.scale
        y = y.flatten(2).unsqueeze(-1).contiguous()
        return self.late(self.norm(y))


@pytest.mark.parametrize("method", METHODS)
def test_direct_through_views_pools_and_concatenation(captured, method) -> None:
    (site,) = captured(Direct(), 2, 3, 8, 8, method=method).train.noises
    assert (site.nearest, site.path) == ("norm", "direct")
    assert site.near == {"norm": "direct"}
    assert site.reaches == ("norm", "late")


class Mixed(nn.Module):
    def __init__(self, rank: int, layer: nn.Module) -> None:
        super().__init__()
        self.drop, self.layer = nn.Dropout(0.3), layer
        self.norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[rank - 1](4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.layer(self.drop(x)))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_weight_in_one_two_and_three_dimensions(captured, rank, method) -> None:
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1](3, 4, 3, padding=1)
    (site,) = captured(Mixed(rank, conv), 2, 3, *(4,) * rank, method=method).train.noises
    assert (site.kind, site.rate, site.nearest, site.path) == ("dropout", 0.3, "norm", "weight")


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(4, 4),
        nn.ConvTranspose1d(4, 4, 3, padding=1),
        nn.LayerNorm(4),
        nn.GroupNorm(2, 4),
        nn.Softmax(-1),
        nn.BatchNorm1d(4, track_running_stats=False),
    ],
    ids=lambda layer: type(layer).__name__,
)
@pytest.mark.parametrize("method", METHODS)
def test_operations_that_mix_units(captured, layer, method) -> None:
    (site,) = captured(Mixed(1, layer), 2, 4, 4, method=method).train.noises
    assert (site.nearest, site.path) == ("norm", "weight")


class WideBlock(nn.Module):
    """Pre-activation unit; dropout goes to the place named by a letter of the placement map."""

    def __init__(self, place: str) -> None:
        super().__init__()
        self.place = place
        self.drop = nn.Dropout(0.3)
        self.norm1, self.norm2 = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.conv1 = nn.Conv2d(4, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)

    def at(self, place: str, x: Tensor) -> Tensor:
        return self.drop(x) if place == self.place else x

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(self.at("A", x))
        y = self.conv1(self.at("C", F.relu(self.at("B", y))))
        y = self.norm2(self.at("D", y))
        y = self.conv2(self.at("F", F.relu(self.at("E", y))))
        return self.at("T", x + self.at("G", y))


@pytest.mark.parametrize(
    ("place", "nearest", "path"),
    [
        ("A", "0.norm1", "direct"),
        ("B", "0.norm2", "weight"),
        ("C", "0.norm2", "weight"),
        ("D", "0.norm2", "direct"),
        ("E", "1.norm1", "join"),
        ("F", "1.norm1", "join"),
        ("G", "1.norm1", "join"),
        ("T", "1.norm1", "direct"),
    ],
)
def test_positions_of_a_residual_block(captured, place, nearest, path) -> None:
    net = nn.Sequential(WideBlock(place), WideBlock(""))
    (site,) = captured(net, 2, 4, 5, 5).train.noises
    assert (site.nearest, site.path) == (nearest, path)


@pytest.mark.parametrize("method", METHODS)
def test_residual_sums_in_other_spellings(captured, method) -> None:
    class Spelled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drops = nn.ModuleList(nn.Dropout(0.1) for _ in range(5))
            self.norms = nn.ModuleList(nn.BatchNorm1d(4) for _ in range(5))

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            d = [drop(x) for drop in self.drops]
            e = x.sin()
            d[0] += e
            sums = [
                d[0],
                torch.stack([d[1], e]).sum(0),
                torch.lerp(d[2], e, 0.5),
                torch.addcmul(e, d[3], d[3]),
                e.sub(d[4]),
            ]
            return tuple(norm(value) for norm, value in zip(self.norms, sums, strict=True))

    flow = captured(Spelled(), 3, 4, method=method).train
    assert paths(flow) == [(f"drops.{i}", f"norms.{i}", "join") for i in range(5)]


@pytest.mark.parametrize("method", METHODS)
def test_sum_of_two_signals_with_the_same_noise_is_no_join(captured, method) -> None:
    class Trunk(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop, self.conv, self.norm = nn.Dropout(0.1), nn.Conv1d(4, 4, 1), nn.BatchNorm1d(4)
            self.inner = nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.drop(x)
            return self.norm(x + self.inner(self.conv(x)))

    (site,) = captured(Trunk(), 2, 4, 3, method=method).train.noises
    assert site.near == {"inner": "weight", "norm": "direct"}
    assert (site.nearest, site.path) == ("norm", "direct")


def test_bias_and_positions_are_no_join(captured) -> None:
    class Embedded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop, self.norm = nn.Dropout(0.1), nn.BatchNorm1d(4)
            self.bias = nn.Parameter(torch.zeros(4, 1))
            self.register_buffer("table", torch.zeros(4, 3))

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.drop(x) + self.bias + self.table + torch.arange(3))

    (site,) = captured(Embedded(), 2, 4, 3).train.noises
    assert site.path == "direct"


@pytest.mark.parametrize("method", METHODS)
def test_squeeze_and_excitation_is_transparent_for_its_signal(captured, method) -> None:
    class Excite(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop, self.fc, self.norm = nn.Dropout(0.2), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.drop(x)
            return self.norm(x * self.fc(x.mean((2, 3), keepdim=True)).sigmoid())

    (site,) = captured(Excite(), 2, 4, 3, 3, method=method).train.noises
    assert (site.nearest, site.path) == ("norm", "direct")


def test_dense_block_feeds_every_later_norm_directly(captured) -> None:
    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convs = nn.ModuleList(nn.Conv1d(4 * (i + 1), 4, 1) for i in range(3))
            self.norms = nn.ModuleList(nn.BatchNorm1d(4 * (i + 1)) for i in range(3))

        def forward(self, x: Tensor) -> Tensor:
            features = [x]
            for conv, norm in zip(self.convs, self.norms, strict=True):
                y = conv(norm(torch.cat(features, 1)))
                features.append(F.dropout(y, 0.2, self.training))
            return torch.cat(features, 1)

    first, second, third = captured(Dense(), 2, 4, 5).train.noises
    assert first.near == {"norms.1": "direct", "norms.2": "direct"}
    assert second.near == {"norms.2": "direct"}
    assert (third.nearest, third.path, third.reaches) == (None, "none", ())


@pytest.mark.parametrize("method", METHODS)
def test_in_place_noise_reaches_other_names_of_the_same_memory(captured, method) -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.other = nn.BatchNorm1d(4), nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = x * 2
            view = y.view(-1)
            before = y + 0
            F.dropout(view, 0.5, self.training, inplace=True)
            return self.norm(y), self.other(before)

    (site,) = captured(InPlace(), 3, 4, method=method).train.noises
    assert site.reaches == ("norm",)


@pytest.mark.parametrize("method", METHODS)
def test_parts_of_a_split_are_kept_apart(captured, method) -> None:
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.other = nn.BatchNorm1d(2), nn.BatchNorm1d(2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            first, second = (x * 2).chunk(2, 1)
            first.mul_((torch.rand_like(first) > 0.5) * 2)
            return self.norm(first), self.other(second)

    (site,) = captured(Parts(), 3, 4, method=method).train.noises
    assert (site.kind, site.rate) == ("dropout", 0.5)
    assert site.reaches == ("norm",)


def test_overwritten_memory_forgets_its_noise(captured) -> None:
    class Overwrite(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            y = F.dropout(x, 0.5, self.training)
            y.copy_(x)
            return self.norm(y)

    (site,) = captured(Overwrite(), 3, 4).train.noises
    assert site.reaches == ()


class Pooled(nn.Module):
    def __init__(self, noise: nn.Module, between: nn.Module, window: int) -> None:
        super().__init__()
        self.noise, self.between, self.pool = noise, between, nn.MaxPool2d(window)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.between(self.noise(x)))  # pool


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("noise", "between", "window", "seen"),
    [
        (nn.Dropout(0.2), nn.ReLU(), 2, True),
        (nn.Dropout(0.2), nn.BatchNorm2d(4), 3, True),
        (nn.AlphaDropout(0.2), nn.SELU(), 2, True),
        (nn.Dropout(0.2), nn.ReLU(), 1, False),
        (nn.Dropout(0.2), nn.Conv2d(4, 4, 1), 2, False),
        (nn.Dropout(0.2), nn.AvgPool2d(2), 2, False),
        (nn.Dropout2d(0.2), nn.ReLU(), 2, False),
    ],
)
def test_max_pools_that_read_elementwise_noise(
    captured, line_of, noise, between, window, seen, method
) -> None:
    (site,) = captured(Pooled(noise, between, window), 2, 4, 6, 6, method=method).train.noises
    expected = ("pool", line_of(Pooled, "pool"), window * window)
    assert site.pools == ((expected,) if seen else ())


def test_global_and_adaptive_max_pools(captured) -> None:
    class Globally(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            y = F.dropout(x, 0.1, self.training)
            residual = F.max_pool2d(y + x.sin(), 2)
            return y.amax((2, 3)), F.adaptive_max_pool2d(y, 2), torch.maximum(y, x), residual

    (site,) = captured(Globally(), 2, 4, 6, 6).train.noises
    assert [window for _, _, window in site.pools] == [36, 9]


def test_flow_is_a_topological_graph_of_plain_data(captured) -> None:
    for flow in (
        captured(Direct(), 2, 3, 8, 8).train,
        captured(Direct(), 2, 3, 8, 8, method="exported").train,
    ):
        for position, node in enumerate(flow.nodes):
            assert node.index == position
            assert all(source < position for source in node.inputs)
        kinds = {node.kind for node in flow.nodes}
        assert {"input", "parameter", "buffer", "weight", "norm", "concat", "pool", "view", "output"} <= kinds
        assert all(flow.nodes[call].kind == "norm" for norm in flow.norms for call in norm.calls)
        assert all(flow.nodes[site.node].kind == "noise" for site in flow.noises)
