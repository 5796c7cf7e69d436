"""What the survey knows of a network before it is built."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

RATE = 0.1
CLASSES = 10


@dataclass(frozen=True)
class Built:
    """A network with what it takes.

    Attributes:
        model: The network.
        title: Its name in the library.
        settings: Arguments that were passed to its constructor.
    """

    model: nn.Module
    title: str
    settings: dict[str, Any]


@dataclass(frozen=True)
class Network:
    """One network of the survey.

    Attributes:
        name: ``"library/network"``, unique.
        package: The package that has to be installed.
        attempts: Ways to build it, each with its input size; the first whose network runs is used.
        inputs: Makes the inputs for a number of samples and a size.
        with_data: Whether it belongs to those that are also checked with data.
        regression: Whether its targets are floats of its output's shape.
        targets: Whether it has targets at all.
    """

    name: str
    package: str
    attempts: Callable[[], Iterator[tuple[int, Callable[[], Built]]]]
    inputs: Callable[[int, int], tuple[Tensor, ...]]
    with_data: bool = True
    regression: bool = False
    targets: bool = True


def images(channels: int) -> Callable[[int, int], tuple[Tensor, ...]]:
    return lambda count, size: (torch.randn(count, channels, size, size),)
