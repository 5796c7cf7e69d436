"""Small networks of many kinds, drawn by number: what predictions are tried on."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

FAMILIES = ("plain", "residual", "preactivation", "inverted", "dense", "perceptron")
_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "leaky": lambda: nn.LeakyReLU(0.1)
}  # fmt: skip
_PLACES: dict[str, tuple[str, ...]] = {
    "plain": ("before norm", "after activation", "after convolution"),
    "residual": ("in branch", "after activation", "before last norm", "end of branch"),
    "preactivation": ("in branch", "before last norm", "end of branch", "after sum"),
    "inverted": ("end of branch", "in branch"),
    "dense": ("end of branch", "in branch"),
    "perceptron": ("before norm", "after activation", "after convolution"),
}


@dataclass(frozen=True)
class Recipe:
    """One network: everything that tells it from others.

    Attributes:
        number: Its number, which seeds weights, training and all choices below.
        family: The kind of block.
        place: Where in the block its noise acts.
        noise: ``"element"``, ``"channel"`` or ``"path"``.
        steps: Steps of its training; where the learning rate `decays`, statistics catch up with the weights.
    """

    number: int
    family: str
    place: str
    noise: str
    rate: float
    width: int
    blocks: int
    activation: str
    gates: bool
    attention: bool
    data: str
    size: int
    steps: int
    batch: int
    decays: bool

    @property
    def name(self) -> str:
        """What a table calls it."""
        extras = "".join((", gates" * self.gates, ", attention" * self.attention))
        return (
            f"#{self.number} {self.family}, {self.blocks} blocks of {self.width}, {self.activation}, "
            f"{self.noise} {self.rate:g} {self.place}{extras}, {self.data} {self.size}"
        )


def recipe(number: int) -> Recipe:
    """The network of a number: families take turns, all else is drawn."""
    draw = random.Random(f"varied {number}")
    family = FAMILIES[number % len(FAMILIES)]
    flat = family == "perceptron"
    noise = "element" if flat or draw.random() < 0.6 else draw.choice(("channel", "path"))
    if noise == "path" and family in ("plain", "dense"):
        noise = "channel"
    place = draw.choice(_PLACES[family])
    if noise == "path":
        place = "end of branch"
    return Recipe(
        number,
        family,
        place,
        noise,
        draw.choice((0.05, 0.1, 0.2, 0.3, 0.5)),
        draw.choice((32, 64)) if flat else draw.choice((8, 12)),
        draw.choice((2, 3, 4, 6, 8)),
        draw.choice(("relu", "relu", *_ACTIVATIONS)),
        not flat and (family == "inverted" or draw.random() < 0.15),
        not flat and draw.random() < 0.15,
        draw.choice(("CIFAR-10", "CIFAR-10", "Fashion-MNIST")),
        draw.choice((12, 16)) if not flat else 12,
        draw.choice((50, 150, 400, 1000)),
        draw.choice((16, 32, 64)),
        draw.random() < 0.5,
    )


class Noise(nn.Module):
    """Dropout of elements or channels, or of whole branches."""

    def __init__(self, kind: str, rate: float) -> None:
        super().__init__()
        self.kind, self.rate = kind, rate
        self.drop: nn.Module = nn.Dropout2d(rate) if kind == "channel" else nn.Dropout(rate)

    def forward(self, x: Tensor) -> Tensor:
        """Drops; a branch by a factor per sample."""
        if self.kind != "path":
            return self.drop(x)
        return x * self.drop(x.new_ones(len(x), *(1,) * (x.dim() - 1)))


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.less, self.more = (
            nn.Conv2d(width, max(width // 4, 2), 1),
            nn.Conv2d(max(width // 4, 2), width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Multiplies every channel by a factor per sample."""
        return x * torch.sigmoid(self.more(torch.relu(self.less(x.mean((2, 3), keepdim=True)))))


class AttentionPool(nn.Module):
    """A mean over positions with weights that one convolution finds."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.score = nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (samples, channels)."""
        weights = torch.softmax(self.score(x).flatten(2), 2)
        return (x.flatten(2) * weights).sum(2)


class Block(nn.Module):
    """One block of a family; ``before`` and ``after`` its noise."""

    def __init__(self, given: Recipe, width: int, out: int) -> None:
        super().__init__()
        self.family, flat = given.family, given.family == "perceptron"

        def act() -> nn.Module:
            return _ACTIVATIONS[given.activation]()

        def norm(size: int) -> nn.Module:
            return nn.BatchNorm1d(size) if flat else nn.BatchNorm2d(size)

        def weights(size: int, to: int, kernel: int = 3, groups: int = 1) -> nn.Module:
            if flat:
                return nn.Linear(size, to)
            return nn.Conv2d(size, to, kernel, padding=kernel // 2, bias=False, groups=groups)

        def drop(*places: str) -> list[nn.Module]:
            return [Noise(given.noise, given.rate)] if given.place in places else []

        gate = [Gate(out)] if given.gates else []
        if self.family in ("plain", "perceptron"):
            steps = [*drop("after convolution"), norm(out), act(), *drop("after activation")]
            if given.place == "before norm":  # the order that papers warn of
                steps = [act(), *drop("before norm"), norm(out)]
            steps = [weights(width, out), *steps, *gate]
        elif self.family == "residual":
            steps = [
                weights(width, out), norm(out), act(), *drop("in branch"), weights(out, out),
                *drop("before last norm"), norm(out), *gate, *drop("end of branch"),
            ]  # fmt: skip
        elif self.family == "preactivation":
            steps = [
                norm(width), act(), weights(width, out), *drop("before last norm"), norm(out), act(),
                *drop("in branch"), weights(out, out), *gate, *drop("end of branch"),
            ]  # fmt: skip
        elif self.family == "inverted":
            inner = 3 * width
            steps = [
                weights(width, inner, 1), norm(inner), act(), weights(inner, inner, groups=inner),
                norm(inner), act(), Gate(inner), *drop("in branch"), weights(inner, out, 1), norm(out),
                *drop("end of branch"),
            ]  # fmt: skip
        else:
            steps = [norm(width), act(), *drop("in branch")]
            steps += [weights(width, out - width), *drop("end of branch")]
        self.steps = nn.Sequential(*steps)
        joins = self.family in ("residual", "preactivation", "inverted")
        self.short = weights(width, out, 1) if joins and width != out else nn.Identity()
        after = [act()] if self.family == "residual" else []
        self.after = nn.Sequential(*after, *drop("after sum"))
        self.last = nn.Sequential(*drop("after activation")) if self.family == "residual" else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Runs the block, around its shortcut where it has one."""
        if self.family in ("plain", "perceptron"):
            return self.steps(x)
        if self.family == "dense":
            return torch.cat([x, self.steps(x)], 1)
        return self.last(self.after(self.short(x) + self.steps(x)))


def build(given: Recipe) -> nn.Module:
    """The network, with new weights from its number."""
    torch.manual_seed(given.number)
    channels = 3 if given.data == "CIFAR-10" else 1
    if given.family == "perceptron":
        parts: list[nn.Module] = [nn.Flatten(), nn.Linear(channels * given.size**2, given.width)]
        parts += [Block(given, given.width, given.width) for _ in range(given.blocks)]
        return nn.Sequential(*parts, nn.BatchNorm1d(given.width), nn.Linear(given.width, 10))
    width = given.width
    parts = [nn.Conv2d(channels, width, 3, padding=1, bias=False)]
    if given.family in ("residual", "inverted"):
        parts += [nn.BatchNorm2d(width), _ACTIVATIONS[given.activation]()]
    size = given.size
    for place in range(given.blocks):
        wider = place > 0 and place % 2 == 0 and width < 4 * given.width
        out = width + 8 if given.family == "dense" else 2 * width if wider else width
        parts.append(Block(given, width, out))
        if size > 6 and (wider or (given.family == "dense" and place % 2)):
            size //= 2
            parts.append(nn.AvgPool2d(2) if place % 4 else nn.MaxPool2d(2))
        width = out
    if given.family in ("preactivation", "dense"):
        parts += [nn.BatchNorm2d(width), _ACTIVATIONS[given.activation]()]
    parts += [AttentionPool(width)] if given.attention else [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    if given.number % 3 == 0:
        parts.append(nn.BatchNorm1d(width))
    return nn.Sequential(*parts, nn.Linear(width, 10))
