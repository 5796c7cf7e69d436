"""The trained networks on which predictions are compared with measurements, and a store of their weights."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from varshift_lab._trainer import TrainingSettings, train
from varshift_lab.data import cifar10, digits, tensor_loader
from varshift_lab.networks import preresnet, wide_resnet
from varshift_lab.networks import vgg as paper_vgg

_STORE = Path(__file__).parent / ".trained"


def trained(
    key: str, make: Callable[[], nn.Module], images: Tensor, labels: Tensor, epochs: int
) -> nn.Module:
    """A network after some epochs, trained once.

    Args:
        key: Name of the file, next to which the number of images and epochs stands.
        make: Builds the network.
        images: What it is trained on.
        labels: Their classes.
        epochs: Passes over the images.
    """
    torch.manual_seed(0)
    net = make()

    def weights() -> dict[str, Tensor]:
        torch.manual_seed(0)
        loader = tensor_loader(images, labels, 64, shuffle=True, drop_last=True)
        train(net, loader, TrainingSettings(epochs=epochs, learning_rate=0.1, weight_decay=5e-4))
        return net.state_dict()

    net.load_state_dict(stored(f"{key}_{len(images)}x{epochs}", weights))
    return net


def stored(name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` returns, made once: it is kept in ``.trained/``, which may be deleted."""
    path = _STORE / f"{name}.pt"
    if path.exists():
        return torch.load(path, weights_only=True)
    made = make()
    _STORE.mkdir(exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(made, partial)
    partial.replace(path)  # so that work that is cut short leaves nothing behind
    return made


def file_name(text: str) -> str:
    """A text as the name of a file."""
    return "".join(letter if letter.isalnum() else "_" for letter in text)


def digits_network(placement: Literal["a", "b"], rate: float, quick: bool = False) -> nn.Module:
    """PreResNet-20 of width 8 on the digits."""
    data = digits()
    return trained(
        f"digits_{placement}{rate}",
        lambda: preresnet(20, 10, dropout=rate, placement=placement, in_channels=1, width=8),
        data.train_images,
        data.train_labels,
        4 if quick else 12,
    )


@dataclass(frozen=True)
class Recipe:
    """How one network on CIFAR-10 is made: the network, and how many images how often."""

    make: Callable[[], nn.Module]
    images: int = 5120
    epochs: int = 2


RECIPES: dict[str, Recipe] = {
    "PreResNet-20, (b) .3": Recipe(lambda: preresnet(20, 10, dropout=0.3, placement="b")),
    "PreResNet-20, channel dropout .1": Recipe(
        lambda: preresnet(20, 10, dropout=0.1, placement="b", noise="channel")
    ),
    "PreResNet-20, drop path .2": Recipe(lambda: preresnet(20, 10, dropout=0.2, placement="P")),
    "VGG with norms, width 32, .2": Recipe(
        lambda: paper_vgg(15, 10, dropout=0.2, norm="batch", width=32), epochs=4
    ),
    "WRN-16-4, (b) .3": Recipe(
        lambda: wide_resnet(16, 10, dropout=0.3, placement="b", widen=4), images=4096, epochs=3
    ),
    "DenseNet-40, growth 12, .2": Recipe(lambda: DenseNet(12, 12, 0.2), images=2048),
}


def cifar_network(name: str, quick: bool = False) -> nn.Module:
    """One of `RECIPES`, trained."""
    recipe = RECIPES[name]
    count = 1024 if quick else recipe.images
    data = cifar10(folder(), batches=1)
    return trained(
        f"cifar_{file_name(name)}",
        recipe.make,
        data.normalised()[:count],
        data.labels[:count],
        1 if quick else recipe.epochs,
    )


def folder() -> Path:
    """Where CIFAR-10 lies."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    return Path(os.environ.get("VARSHIFT_DATA", default)) / "cifar10"


class DenseNet(nn.Module):
    """Three dense blocks of ``norm relu conv dropout``, as in DenseNet-BC without bottlenecks."""

    def __init__(self, layers: int, growth: int, dropout: float) -> None:
        super().__init__()
        channels = 2 * growth
        stages: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1)]
        for stage in range(3):
            for _ in range(layers):
                stages.append(_DenseLayer(channels, growth, dropout))
                channels += growth
            if stage < 2:
                stages += [nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, channels, 1)]
                stages += [nn.Dropout(dropout), nn.AvgPool2d(2)]
        head = [
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(channels, 10),
        ]
        self.layers = nn.Sequential(*stages, *head)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores."""
        return self.layers(x)


class _DenseLayer(nn.Module):
    def __init__(self, channels: int, growth: int, dropout: float) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(channels), nn.Conv2d(channels, growth, 3, padding=1, bias=False)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.drop(self.conv(F.relu(self.norm(x))))], 1)
