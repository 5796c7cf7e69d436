from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from varshift.flow import capture

METHODS = ["exported", "recorded"]


class HandWritten(nn.Module):
    """A batch norm without a batch-norm operator, with buffers under other names."""

    def __init__(self, channels: int, axis_first: bool = False) -> None:
        super().__init__()
        self.axis_first = axis_first
        self.register_buffer("moving_mean", torch.zeros(channels))
        self.register_buffer("moving_var", torch.ones(channels))
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not self.training:
            return self.moving_mean, self.moving_var
        if self.axis_first:
            rows = x.transpose(0, 1).reshape(x.shape[1], -1)
            mean, var = rows.mean(1), rows.var(1, unbiased=False)
        else:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
        with torch.no_grad():
            self.moving_mean.lerp_(mean, 0.1)
            self.moving_var.mul_(0.9).add_(var, alpha=0.1)
        return mean, var

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.statistics(x)
        y = (x - mean[:, None, None]) * torch.rsqrt(var + 1e-5)[:, None, None]
        return y * self.weight[:, None, None] + self.bias[:, None, None]


class Frozen(nn.Module):
    """Frozen batch norm: running statistics in every mode."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name, value in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
            self.register_buffer(name, torch.full((channels,), float(value)))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        return x * scale.view(1, -1, 1, 1) + (self.bias - self.running_mean * scale).view(1, -1, 1, 1)


class Subclass(nn.BatchNorm2d):
    """A user's subclass that calls the operator itself and activates."""

    def forward(self, input: Tensor) -> Tensor:
        y = F.batch_norm(
            input.float(), self.running_mean, self.running_var, self.weight, self.bias, self.training
        )
        return F.relu(y)


class Functional(nn.Module):
    """Owns its statistics under its own names and passes them to the operator."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("avg_mean", torch.zeros(channels))
        self.register_buffer("avg_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.avg_mean, self.avg_var, training=self.training)


class Ghost(nn.BatchNorm2d):
    """Norms over parts of the batch, with repeated buffers."""

    def forward(self, input: Tensor) -> Tensor:
        assert self.running_mean is not None
        assert self.running_var is not None
        n, c, h, w = input.shape
        y = F.batch_norm(
            input.view(n // 2, c * 2, h, w), self.running_mean.repeat(2), self.running_var.repeat(2),
            training=self.training,
        )  # fmt: skip
        return y.view(n, c, h, w)


class Norms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.BatchNorm2d(4)
        self.sub = Subclass(4)
        self.hand = HandWritten(4)
        self.hand_rows = HandWritten(4, axis_first=True)
        self.frozen = Frozen(4)
        self.functional = Functional(4)
        self.ghost = Ghost(4)
        self.instance = nn.InstanceNorm2d(4, track_running_stats=True)
        self.untracked_instance = nn.InstanceNorm2d(4, affine=True)
        self.untracked = nn.BatchNorm2d(4, track_running_stats=False)
        self.sync = nn.SyncBatchNorm(4)
        self.group, self.layer = nn.GroupNorm(2, 4), nn.LayerNorm(5)
        self.order = list(self._modules)
        self.alias = self.plain

    def forward(self, x: Tensor) -> Tensor:
        for name in self.order:
            x = getattr(self, name)(x)  # call
        return self.alias(x)  # again


@pytest.mark.parametrize("method", METHODS)
def test_every_kind_of_norm(captured, line_of, method) -> None:
    result = captured(Norms(), 4, 4, 5, 5, method=method)
    expected = [  # name, class, kind, batch statistics in train mode, tracked
        ("plain", "BatchNorm2d", "batch_norm", True, True),
        ("sub", "Subclass", "batch_norm", True, True),
        ("hand", "HandWritten", "hand_written", True, True),
        ("hand_rows", "HandWritten", "hand_written", True, True),
        ("frozen", "Frozen", "hand_written", False, True),
        ("functional", "Functional", "batch_norm", True, True),
        ("ghost", "Ghost", "batch_norm", True, True),
        ("instance", "InstanceNorm2d", "instance_norm", True, True),
        ("untracked", "BatchNorm2d", "batch_norm", True, False),
        ("sync", "SyncBatchNorm", "batch_norm", True, True),
    ]
    train = [(n.name, n.cls, n.kind, n.batch_statistics, n.tracked) for n in result.train.norms]
    evaluation = [(n.name, n.cls, n.kind, n.batch_statistics, n.tracked) for n in result.eval.norms]
    assert train == expected
    assert evaluation == [
        (name, cls, kind, name == "untracked", tracked) for name, cls, kind, _, tracked in expected
    ]
    plain = result.train.norms[0]
    assert len(plain.calls) == 2
    assert plain.shapes == ((2, 4, 5, 5),) * 2
    assert all(norm.channels == 4 for norm in result.train.norms)
    assert {norm.source for norm in result.train.norms} == {line_of(Norms, "call")}
    assert result.train.nodes[plain.calls[1]].source == line_of(Norms, "again")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_hand_written_norm_stops_and_receives_noise(captured, method, mode) -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hand, self.late = HandWritten(4), HandWritten(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.late(self.hand(F.dropout(x, 0.3)))

    result = captured(Network(), 2, 4, 3, 3, method=method)
    (site,) = getattr(result, mode).noises
    assert site.near == {"hand": "direct"}
    assert site.reaches == ("hand", "late")


@pytest.mark.parametrize("method", METHODS)
def test_untracked_norm_is_no_target(captured, method) -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.untracked, self.norm = nn.BatchNorm1d(4, track_running_stats=False), nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.untracked(F.dropout(x, 0.3)))

    (site,) = captured(Network(), 3, 4, method=method).train.noises
    assert site.reaches == ("norm",)
    assert site.near == {"norm": "weight"}


@pytest.mark.parametrize("method", METHODS)
def test_shared_modules_have_one_name(captured, method) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Sequential(nn.Conv1d(4, 4, 1), nn.BatchNorm1d(4), nn.Dropout(0.2))
            self.second = nn.ModuleDict({"body": self.first})
            self.last = self.first[1]

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.second["body"](self.first(x)))

    flow = captured(Shared(), 2, 4, 3, method=method).train
    (norm,) = flow.norms
    assert norm.name == "first.1"
    assert len(norm.calls) == 3
    assert [site.name for site in flow.noises] == ["first.2", "first.2"]
    assert [site.near for site in flow.noises] == [{"first.1": "weight"}, {"first.1": "direct"}]


def test_root_that_is_a_norm(captured) -> None:
    (norm,) = captured(nn.BatchNorm1d(3), 4, 3).train.norms
    assert (norm.name, norm.cls, norm.channels) == ("", "BatchNorm1d", 3)


@pytest.mark.parametrize("method", METHODS)
def test_norm_kept_in_eval_mode_uses_its_running_statistics(captured, method) -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frozen, self.live = nn.BatchNorm1d(3), nn.BatchNorm1d(3)

        def train(self, mode: bool = True) -> Half:
            super().train(mode)
            self.frozen.eval()
            return self

        def forward(self, x: Tensor) -> Tensor:
            return self.live(self.frozen(x))

    flow = captured(Half(), 4, 3, method=method).train
    assert {norm.name: norm.batch_statistics for norm in flow.norms} == {"frozen": False, "live": True}


def test_modules_with_other_buffers_are_no_norms(captured) -> None:
    class Tracker(nn.Module):
        """Counts usage like a vector quantiser; nothing is normalised."""

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("ema_usage", torch.ones(4))
            self.register_buffer("pixel_mean", torch.zeros(4))
            self.register_buffer("pixel_std", torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            self.ema_usage.lerp_(x.mean(0).detach(), 0.1)
            return (x - self.pixel_mean) / self.pixel_std + self.ema_usage

    result = captured(Tracker(), 3, 4)
    assert result.train.norms == ()
    assert result.eval.norms == ()


def test_norms_that_average_over_all_batches_are_captured(captured) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Dropout(0.3), nn.BatchNorm2d(4, momentum=None), nn.InstanceNorm2d(4),
        nn.InstanceNorm2d(4, momentum=None, track_running_stats=True),  # type: ignore[arg-type]
    )  # fmt: skip
    result = captured(model, 4, 3, 6, 6)
    assert result.method == "recorded"
    assert result.limits == ()
    assert result.train is not None
    assert [norm.name for norm in result.train.norms] == ["2", "4"]
    assert model[2].momentum is None
    assert model[4].momentum is None
    assert model[2].num_batches_tracked == 0


class Standardised(nn.Conv2d):
    """Standardises its weights with the kernel of batch norm, as timm's networks without norms do."""

    def forward(self, x: Tensor) -> Tensor:
        rows = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(rows, None, None, training=True, momentum=0.0).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias)


def test_a_norm_over_parameters_alone_is_no_norm_of_a_signal():
    torch.manual_seed(0)
    network = nn.Sequential(Standardised(3, 8, 3), nn.ReLU(), Standardised(8, 8, 3))
    captured = capture(network, torch.randn(2, 3, 10, 10))
    assert captured.train.norms == captured.eval.norms == ()
    signal = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False))
    assert [site.tracked for site in capture(signal, torch.randn(2, 3, 10, 10)).eval.norms] == [False]
