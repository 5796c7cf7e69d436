"""Pre-activation residual networks for large images (He et al. 2016, arXiv 1603.05027), "ResNetV2"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ._chain import Step
from ._parts import Noise, Norm, Parts, check_counts, convolution
from ._placement import Placement
from ._preresnet import preactivation_block
from ._residual import Network

_BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
_EXPANSION = 4


class ImagePreResNet(Network):
    """A 7x7 stem, max pooling and four stages of pre-activation bottlenecks; see `image_preresnet`."""

    def __init__(
        self, blocks: tuple[int, ...], num_classes: int, parts: Parts, *, in_channels: int, width: int
    ) -> None:
        super().__init__()
        check_counts(num_classes=num_classes, in_channels=in_channels, width=width)
        stem: list[Step] = [convolution(in_channels, width, 7, 2), nn.MaxPool2d(3, 2, 1)]
        self.begin(in_channels, stem, parts)
        channels, stages = width, []
        for stage, number in enumerate(blocks):
            planes, layers = width * 2**stage, []
            for index in range(number):
                stride = 2 if stage > 0 and index == 0 else 1
                layers.append(
                    preactivation_block(
                        channels, planes, stride, parts, block="bottleneck", fork="activation"
                    )
                )
                channels = planes * _EXPANSION
            stages.append(nn.Sequential(*layers))
        self.stages = nn.Sequential(*stages)
        self.finish(channels, num_classes, ["norm", "act"], parts)


def image_preresnet(
    depth: int = 50,
    num_classes: int = 1000,
    *,
    dropout: float = 0.0,
    placement: Placement = "b",
    noise: Noise = "dropout",
    norm: Norm = "batch",
    norm_options: Mapping[str, Any] | None = None,
    in_channels: int = 3,
    width: int = 64,
) -> ImagePreResNet:
    """Builds a pre-activation residual network for images of some 224 pixels, by default of 50 layers.

    Shortcut convolutions have no norm and read the signal behind the block's first norm and ReLU.

    Args:
        depth: 50, 101 or 152.
        num_classes: Number of classes.
        dropout: Strength of the noise, a DROP probability for dropout; see `Parts`.
        placement: Where it stands, see `Parts`.
        noise: Kind of noise, see `Parts`.
        norm: Kind of norm, see `Parts`.
        norm_options: Arguments of the norm, see `Parts`.
        in_channels: Channels of the input.
        width: Planes of the first stage.

    Returns:
        The network, in training mode.

    Raises:
        ValueError: If an argument is out of range.
    """
    if depth not in _BLOCKS:
        raise ValueError(f"depth={depth!r} must be one of {', '.join(map(str, _BLOCKS))}.")
    parts = Parts(dropout, placement, noise, norm, norm_options)
    return ImagePreResNet(_BLOCKS[depth], num_classes, parts, in_channels=in_channels, width=width)
