"""Small networks of three families on three data sets, in which faults are planted."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from _networks import stored
from varshift_lab.data import cifar10, digit_images, fashion_mnist

FAMILIES = ("dense", "plain", "residual")
DATA = ("digits", "fashion", "cifar10")
SAMPLES, BATCH, EPOCHS = 1536, 64, 8
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.InstanceNorm2d)

Module = Callable[[], nn.Module]
Loss = Callable[[Tensor, Tensor], Tensor]


@cache
def images(data: str) -> tuple[Tensor, Tensor]:
    """Standardised images of at most 16 pixels a side, and their classes.

    Raises:
        FileNotFoundError: If the data set is not there.
    """
    loaded = {"digits": digit_images, "fashion": fashion_mnist, "cifar10": lambda: cifar10(batches=1)}[data]()
    x, y = loaded.normalised()[:SAMPLES], loaded.labels[:SAMPLES]
    return (F.avg_pool2d(x, 2) if x.shape[-1] > 16 else x), y


def loader(x: Any, y: Tensor, size: int = BATCH, *, shuffle: bool = True, drop_last: bool = True) -> Any:
    """Batches of samples in a new order each time."""
    return DataLoader(TensorDataset(x, y), size, shuffle=shuffle, drop_last=drop_last)


class Residual(nn.Module):
    """``relu(x + path(branch(x)))``; `whole` acts on the sum."""

    def __init__(self, branch: nn.Module, whole: nn.Module) -> None:
        super().__init__()
        self.branch, self.whole = branch, whole

    def forward(self, x: Tensor) -> Tensor:
        """The block."""
        return F.relu(self.whole(x + self.branch(x)))


class Network(nn.Module):
    """Layers, a head and a linear classifier."""

    def __init__(self, body: nn.Module, head: nn.Module, width: int, outputs: int) -> None:
        super().__init__()
        self.body, self.head, self.classes = body, head, nn.Linear(width, outputs)

    def features(self, x: Tensor) -> Tensor:
        """What the classifier reads."""
        return self.head(self.body(x))

    def forward(self, x: Tensor) -> Tensor:
        """The logits."""
        return self.classes(self.features(x))


def network(
    family: str,
    channels: int,
    side: int,
    *,
    before: Module = nn.Identity,
    after: Module = nn.Identity,
    head: Module = nn.Identity,
    whole: Module = nn.Identity,
    norm: Callable[[int], nn.Module] | None = None,
    outputs: int = 10,
) -> Network:
    """A network of a family with something in front of its norms, after its activations or in its head."""

    def layer(weights: nn.Module, width: int, *end: nn.Module) -> nn.Sequential:
        kind = norm or (nn.BatchNorm1d if family == "dense" else nn.BatchNorm2d)
        return nn.Sequential(weights, before(), kind(width), *end)

    def conv(i: int, o: int, stride: int = 1) -> nn.Module:
        return nn.Conv2d(i, o, 3, stride, 1, bias=False)

    if family == "dense":
        size = channels * side * side
        layers = [layer(nn.Linear(i, 64), 64, nn.ReLU(), after()) for i in (size, 64, 64)]
        return Network(nn.Sequential(nn.Flatten(), *layers), head(), 64, outputs)
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), head())
    if family == "plain":
        shapes = ((channels, 16, 1), (16, 24, 2), (24, 24, 1))
        body = nn.Sequential(*(layer(conv(*shape), shape[1], nn.ReLU(), after()) for shape in shapes))
        return Network(body, pooled, 24, outputs)
    blocks = []
    for _ in range(2):
        branch = nn.Sequential(layer(conv(16, 16), 16, nn.ReLU(), after()), layer(conv(16, 16), 16))
        blocks.append(Residual(branch, whole()))
    stem = layer(conv(channels, 16, 2 if side > 8 else 1), 16, nn.ReLU())
    return Network(nn.Sequential(stem, *blocks), pooled, 16, outputs)


def fit(
    model: nn.Module,
    batches: Any,
    epochs: int = EPOCHS,
    rate: float = 1e-2,
    loss: Loss = F.cross_entropy,
    *,
    start: Callable[[nn.Module], Any] = nn.Module.train,
    each: Callable[[nn.Module, int], Any] = lambda model, step: None,
) -> nn.Module:
    """Trains with Adam; `start` is called in front of each epoch, `each` in front of each step."""
    optimizer = torch.optim.Adam([weights for weights in model.parameters() if weights.requires_grad], rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, max(1, epochs * len(batches)))
    step = 0
    for _ in range(epochs):
        start(model)
        for x, y in batches:
            each(model, step)
            optimizer.zero_grad()
            loss(model(x), y).backward()
            optimizer.step()
            schedule.step()
            step += 1
    return model


@dataclass(frozen=True)
class Setting:
    """Where a fault is planted.

    Attributes:
        family: Family of the network.
        data: Name of the data set.
        seed: Seed of weights, order and noise.
    """

    family: str
    data: str
    seed: int

    @property
    def x(self) -> Tensor:
        """The images."""
        return images(self.data)[0]

    @property
    def y(self) -> Tensor:
        """Their classes."""
        return images(self.data)[1]

    def network(self, **changes: Any) -> Network:
        """A network that has learnt nothing."""
        torch.manual_seed(self.seed)
        return network(self.family, *self.x.shape[1:3], **changes)

    def loader(self, size: int = BATCH) -> Any:
        """The images in batches."""
        return loader(self.x, self.y, size)

    def trained(self, name: str, make: Callable[[], nn.Module], train: Callable[[nn.Module], Any]) -> Any:
        """A network after training, which is done once and kept.

        Args:
            name: Tells it from the others of this setting.
            make: Builds the network.
            train: Trains it in place.
        """

        def weights() -> dict[str, Tensor]:
            model = make()
            torch.manual_seed(self.seed)
            with torch.enable_grad():
                train(model)
            return model.state_dict()

        model = make()
        key = f"diagnosis_{name}_{self.family}_{self.data}_{self.seed}"
        model.load_state_dict(stored(key, weights))
        return model.train()

    def plain(self, name: str = "plain", **changes: Any) -> Any:
        """A network trained as one should, but for these changes of its parts."""
        return self.trained(name, lambda: self.network(**changes), lambda model: fit(model, self.loader()))


def norms(model: nn.Module) -> list[Any]:
    """The norms of a network."""
    return [module for module in model.modules() if isinstance(module, NORMS)]


@torch.no_grad()
def recalibrated(model: nn.Module, batches: Any) -> nn.Module:
    """A copy with statistics re-estimated with all other modules in evaluation mode, by torch alone."""
    model = copy.deepcopy(model).eval()
    for norm in norms(model):
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    for x, _ in batches:
        model(x)
    return model.train()
