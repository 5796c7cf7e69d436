"""Residual networks, version 1 (He et al. 2015, arXiv 1512.03385), for small images."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from ._chain import Step
from ._parts import Noise, Norm, Parts, block_kind, blocks_of, conv1x1, conv3x3
from ._placement import Placement
from ._preresnet import EXPANSIONS, BlockKind
from ._residual import Block, ResidualNetwork, projection


class ResNet(ResidualNetwork):
    """A residual network of version 1, see `resnet`."""


def resnet(
    depth: int = 20,
    num_classes: int = 10,
    *,
    dropout: float = 0.0,
    placement: Placement = "b",
    block: BlockKind = "basic",
    noise: Noise = "dropout",
    norm: Norm = "batch",
    norm_options: Mapping[str, Any] | None = None,
    shortcut_norm: bool = False,
    in_channels: int = 3,
    width: int = 16,
) -> ResNet:
    """Builds a residual network of version 1: ``conv norm relu`` in the branch, the last ReLU behind the sum.

    A branch ends with its norm, so that there is no place behind the last norm and in front of the last
    weight: placements ``"E"`` and ``"F"`` are refused.

    Args:
        depth: Number of layers: ``6 n + 2`` for basic blocks, ``9 n + 2`` for bottlenecks.
        num_classes: Number of classes.
        dropout: Strength of the noise, a DROP probability for dropout; see `Parts`.
        placement: Where it stands: ``"a"`` in front of the last norm of each branch, ``"b"`` in front of its
            last convolution; others see `Parts`.
        block: ``"basic"`` or ``"bottleneck"`` (expansion 4).
        noise: Kind of noise, see `Parts`.
        norm: Kind of norm, see `Parts`.
        norm_options: Arguments of the norm, see `Parts`.
        shortcut_norm: Whether a norm follows the convolutions on shortcuts, as in networks for large images.
            The counts of the independent-component comparison are those without.
        in_channels: Channels of the input.
        width: Planes of the first stage.

    Returns:
        The network, in training mode.

    Raises:
        ValueError: If an argument is out of range.
    """
    block_kind(block, EXPANSIONS)
    return ResNet(
        blocks_of(depth, 9 if block == "bottleneck" else 6, 2, f" for block={block!r}"),
        num_classes,
        Parts(dropout, placement, noise, norm, norm_options),
        partial(_block, block=block, shortcut_norm=shortcut_norm),
        expansion=EXPANSIONS[block],
        in_channels=in_channels,
        stem=width,
        width=width,
        stem_steps=["norm", "act"],
    )


def _block(
    channels: int, planes: int, stride: int, parts: Parts, *, block: str, shortcut_norm: bool
) -> Block:
    steps: list[Step]
    if block == "basic":
        steps = [conv3x3(channels, planes, stride=stride), "norm", "act", conv3x3(planes, planes), "norm"]
    else:
        steps = [conv1x1(channels, planes), "norm", "act", conv3x3(planes, planes, stride=stride)]
        steps += ["norm", "act", conv1x1(planes, 4 * planes), "norm"]
    norm = ["norm"] if shortcut_norm else []
    shortcut = projection(channels, planes * EXPANSIONS[block], stride, *norm)
    return Block(channels, steps, parts, shortcut=shortcut, after="act")
