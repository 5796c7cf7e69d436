"""Aggregated residual networks (Xie et al. 2017, arXiv 1611.05431), for small images."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from ._chain import Step
from ._parts import Noise, Norm, Parts, blocks_of, check_counts, conv1x1, conv3x3
from ._placement import Placement
from ._residual import Block, ResidualNetwork, projection

_EXPANSION = 4
_STEM = 64


class ResNeXt(ResidualNetwork):
    """An aggregated residual network, see `resnext`."""


def resnext(
    depth: int = 29,
    num_classes: int = 10,
    *,
    dropout: float = 0.0,
    placement: Placement = "b",
    noise: Noise = "dropout",
    norm: Norm = "batch",
    norm_options: Mapping[str, Any] | None = None,
    cardinality: int = 8,
    base_width: int = 64,
    in_channels: int = 3,
    width: int = _STEM,
) -> ResNeXt:
    """Builds a ResNeXt; by default the variance-shift paper's ResNeXt-29, 8x64d, with 31 norms.

    A block is ``conv1 norm1 relu conv2 (3x3 in groups) norm2 relu conv3 norm3``, plus the trunk, then ReLU;
    shortcuts that change the shape are a 1x1 convolution with a norm. Branches end with a norm: placements
    ``"E"`` and ``"F"`` are refused.

    Args:
        depth: ``9 n + 2``.
        num_classes: Number of classes.
        dropout: Strength of the noise, a DROP probability for dropout; see `Parts`.
        placement: Where it stands: ``"a"`` in front of the last norm of each branch, ``"b"`` in front of its
            last convolution; others see `Parts`.
        noise: Kind of noise, see `Parts`.
        norm: Kind of norm, see `Parts`.
        norm_options: Arguments of the norm, see `Parts`.
        cardinality: Groups of the 3x3 convolutions.
        base_width: Channels of a group in the first stage, at width 64.
        in_channels: Channels of the input.
        width: Channels of the stem; stages put out 4, 8 and 16 times as many. Groups are narrowed with it,
            to one channel at least.

    Returns:
        The network, in training mode.

    Raises:
        ValueError: If an argument is out of range.
    """
    check_counts(cardinality=cardinality, base_width=base_width, width=width)
    group = max(1, base_width * width // _STEM)
    return ResNeXt(
        blocks_of(depth, 9, 2),
        num_classes,
        Parts(dropout, placement, noise, norm, norm_options),
        partial(_block, cardinality=cardinality, inner=cardinality * group, first=width),
        expansion=_EXPANSION,
        in_channels=in_channels,
        stem=width,
        width=width,
        stem_steps=["norm", "act"],
    )


def _block(
    channels: int, planes: int, stride: int, parts: Parts, *, cardinality: int, inner: int, first: int
) -> Block:
    inner = inner * planes // first
    steps: list[Step] = [conv1x1(channels, inner), "norm", "act"]
    steps += [conv3x3(inner, inner, stride=stride, groups=cardinality), "norm", "act"]
    steps += [conv1x1(inner, _EXPANSION * planes), "norm"]
    shortcut = projection(channels, _EXPANSION * planes, stride, "norm")
    return Block(channels, steps, parts, shortcut=shortcut, after="act")
