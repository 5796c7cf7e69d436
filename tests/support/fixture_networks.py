"""Every network that the tests were written around, in one list: each with batches that it runs on.

The networks of single test files are taken from there; networks here are of kinds that no single file needs.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import odd_networks
import torch
import torch.nn.functional as F
from torch import Tensor, nn

TESTS = Path(__file__).parents[1]
BATCHES = 2


@dataclass(frozen=True)
class Fixture:
    """A network of the tests.

    Attributes:
        name: Where it comes from and what it is called there.
        build: Makes it.
        batch: Makes one batch that it runs on.
        settings: Further arguments of a check.
        zoo: Whether it needs timm or torchvision.
    """

    name: str
    build: Callable[[], nn.Module]
    batch: Callable[[], Any]
    settings: dict[str, Any] = field(default_factory=dict)
    zoo: bool = False

    def batches(self) -> list[Any]:
        """A few batches, always the same."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            return [self.batch() for _ in range(BATCHES)]

    def network(self) -> nn.Module:
        """The network, always the same, with statistics that moved."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            return self.build()


@cache
def _file(name: str) -> ModuleType:
    """A file of tests as a module."""
    spec = importlib.util.spec_from_file_location(f"fixtures_{name.replace('/', '_')}", TESTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def images(*sizes: int) -> Callable[[], Tensor]:
    """Makes Gaussian inputs of a size."""
    return lambda: torch.randn(*sizes)


def labelled(classes: int, *sizes: int) -> Callable[[], tuple[Tensor, Tensor]]:
    """Makes Gaussian inputs of a size, with classes."""
    return lambda: (torch.randn(*sizes), torch.randint(classes, sizes[:1]))


def all_fixtures() -> tuple[Fixture, ...]:
    """All of them, in no order that matters."""
    return (*_of_rules(), *_of_flow(), *_of_probe(), *_of_layers(), *_odd(), *_hand_written(), *_of_zoo())


def _of_rules() -> Iterator[Fixture]:
    file = _file("rules/test_models")
    # The one with half-precision statistics does not run: torch refuses it in train mode.
    builders = [name for name in vars(file) if name.startswith("vs") and name not in ("vs", "vs206")]
    for name in ("healthy", "vectors", *builders):
        yield Fixture(f"rules/{name}", getattr(file, name), labelled(4, 16, 3, 8, 8))


def _of_flow() -> Iterator[Fixture]:
    file = _file("flow/test_architectures")
    for name, (build, batch, *_) in file.NETWORKS.items():
        yield Fixture(f"flow/{name}", build, batch)
    for build in (file.Counting, file.Halved, file.Registry, file.Folded, file.weight_norm):
        yield Fixture(f"flow/{build.__name__}", build, images(4, 3, 8, 8))
    yield Fixture("flow/KeywordOnly", file.KeywordOnly, lambda: {"x": torch.randn(4, 3, 8, 8)})
    for kind in (nn.RNN, nn.LSTM, nn.GRU):
        yield Fixture(f"flow/{kind.__name__}", lambda kind=kind: file.Recurrent(kind), images(4, 5, 6))
    norms = _file("flow/test_norms")
    yield Fixture("flow/Norms", norms.Norms, images(4, 4, 5, 5))


def _of_probe() -> Iterator[Fixture]:
    file = _file("probe/test_odd_models")
    adapter = lambda: nn.Sequential(nn.Flatten(), file.Adapter(300, 8), nn.BatchNorm1d(8), nn.Linear(8, 5))  # noqa: E731
    yield Fixture("probe/Adapter", adapter, labelled(5, 8, 3, 10, 10))
    hand_written = lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.Dropout(0.5), file.HandWritten(8))  # noqa: E731
    yield Fixture("probe/HandWritten", hand_written, images(8, 3, 10, 10))
    yield Fixture("check/Net", _file("test_check").Net, labelled(3, 16, 1, 10, 10))


def _of_layers() -> Iterator[Fixture]:
    import varshift.nn as parts

    file = _file("nn/test_noise_is_seen")
    for name, (make, *_) in zip(file.IDS, file.CASES, strict=True):
        yield Fixture(f"nn/{name}", lambda make=make: file.Net(make()), labelled(3, 16, 3, 10, 10))
    for norm in (
        parts.BatchRenorm2d,
        parts.FilterResponseNorm2d,
        parts.BatchKalmanNorm2d,
        parts.FrozenBatchNorm,
    ):
        build = lambda norm=norm: nn.Sequential(nn.Conv2d(3, 8, 3), nn.Dropout(0.3), norm(8))  # noqa: E731
        yield Fixture(f"nn/{norm.__name__}", build, images(8, 3, 10, 10))


def _odd() -> Iterator[Fixture]:
    for name, build in odd_networks.NETWORKS.items():
        yield Fixture(f"odd/{name}", build, labelled(odd_networks.CLASSES, 8, odd_networks.WIDTH))


class HandNorm(nn.Module):
    """A norm written by hand whose states have a given name, home and shape.

    Attributes:
        home: ``"buffer"``, ``"parameter"`` or ``"attribute"``.
        deviation: Whether the second state is a standard deviation.
        types: Number of rows, one per kind of batch; the first one is used.
    """

    def __init__(
        self, channels: int, mean: str, second: str, home: str, *, deviation: bool = False, types: int = 0
    ) -> None:
        super().__init__()
        self.mean, self.second, self.deviation, self.types = mean, second, deviation, types
        shape = (types, channels) if types else (channels,)
        for name, value in ((mean, torch.zeros(shape)), (second, torch.ones(shape))):
            if home == "buffer":
                self.register_buffer(name, value)
            elif home == "parameter":
                self.register_parameter(name, nn.Parameter(value, requires_grad=False))
            else:
                setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        mean, second = getattr(self, self.mean), getattr(self, self.second)
        if self.types:
            mean, second = mean[0], second[0]
        if self.training:
            batch_mean = x.mean((0, 2, 3))
            variance = x.var((0, 2, 3), unbiased=False)
            spread = variance.sqrt() if self.deviation else variance
            with torch.no_grad():
                mean.lerp_(batch_mean, 0.1)
                second.lerp_(spread, 0.1)
            mean, second = batch_mean, spread
        scale = second + 1e-5 if self.deviation else (second + 1e-5).sqrt()
        return (x - mean[:, None, None]) / scale[:, None, None]


class HandDropConnect(nn.Module):
    """Drop connect as published networks write it: ``floor(keep + rand)``."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x / 0.8 * torch.floor(0.8 + torch.rand(x.shape[0], 1, 1, 1))


class TwoInOneLine(nn.Module):
    """Two functional dropouts in one line, and a module that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.drop = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(self.first(F.dropout(x, 0.2, self.training)), 0.4, self.training)
        return self.drop(self.norm(self.drop(x)))


class NoNorm(nn.Module):
    """Noise and no norm at all."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(F.dropout(x, 0.5, self.training))


def _hand_written() -> Iterator[Fixture]:
    kinds: dict[str, dict[str, Any]] = {
        "moving buffers": {"mean": "moving_mean", "second": "moving_var", "home": "buffer"},
        "averages": {"mean": "ema_mean", "second": "ema_var", "home": "buffer"},
        "names of no meaning": {"mean": "a", "second": "b", "home": "buffer"},
        "deviation": {"mean": "mu", "second": "sigma", "home": "buffer", "deviation": True},
        "parameters": {"mean": "running_mean", "second": "running_var", "home": "parameter"},
        "attributes": {"mean": "running_mean", "second": "running_var", "home": "attribute"},
        "rows": {"mean": "running_mean", "second": "running_var", "home": "buffer", "types": 3},
    }
    for name, arguments in kinds.items():

        def build(arguments: dict[str, Any] = arguments) -> nn.Module:
            return nn.Sequential(
                nn.Conv2d(3, 8, 3), HandDropConnect(), HandNorm(8, **arguments), nn.ReLU(), nn.Conv2d(8, 4, 3)
            )

        yield Fixture(f"hand-written/{name}", build, images(8, 3, 8, 8))
    yield Fixture("hand-written/two in one line", TwoInOneLine, images(8, 6))
    yield Fixture("hand-written/no norm", NoNorm, labelled(3, 8, 6))


def _of_zoo() -> Iterator[Fixture]:
    def timm_network(name: str, **settings: Any) -> Callable[[], nn.Module]:
        def build() -> nn.Module:
            import timm

            return timm.create_model(name, num_classes=5, **settings)

        return build

    def torchvision_network(name: str) -> Callable[[], nn.Module]:
        def build() -> nn.Module:
            import torchvision

            return torchvision.models.get_model(name, num_classes=5)

        return build

    small = labelled(5, 4, 3, 32, 32)
    yield Fixture("timm/resnet18", timm_network("resnet18"), small, zoo=True)
    yield Fixture(
        "timm/efficientnet_b0", timm_network("efficientnet_b0", drop_path_rate=0.2), small, zoo=True
    )
    yield Fixture("torchvision/mobilenet_v2", torchvision_network("mobilenet_v2"), small, zoo=True)
