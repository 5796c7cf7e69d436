"""Densely connected networks with bottlenecks and compression (Huang et al. 2017, arXiv 1608.06993)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ._chain import Chain
from ._parts import HalfSize, Noise, Norm, Parts, blocks_of, check_counts, conv1x1, conv3x3
from ._placement import Placement
from ._residual import Block, Network

_BOTTLENECK = 4


class DenseNetBC(Network):
    """A DenseNet-BC, see `densenet_bc`."""

    def __init__(
        self,
        layers: int,
        num_classes: int,
        parts: Parts,
        *,
        growth: int,
        compression: float,
        in_channels: int,
        width: int,
    ) -> None:
        super().__init__()
        self.begin(in_channels, [conv3x3(in_channels, width)], parts)
        channels, stages = width, []
        for stage in range(3):
            blocks: list[nn.Module] = []
            for _ in range(layers):
                inner = _BOTTLENECK * growth
                steps = ["norm", "act", conv1x1(channels, inner), "norm", "act", conv3x3(inner, growth)]
                blocks.append(Block(channels, steps, parts, join="concat"))
                channels += growth
            if stage < 2:
                out = max(1, int(channels * compression))
                steps = ["norm", "act", conv1x1(channels, out), HalfSize()]
                blocks.append(Chain(channels, steps, parts.quiet()))
                channels = out
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.finish(channels, num_classes, ["norm", "act"], parts)


def densenet_bc(
    depth: int = 100,
    num_classes: int = 10,
    *,
    dropout: float = 0.0,
    placement: Placement = "b",
    noise: Noise = "dropout",
    norm: Norm = "batch",
    norm_options: Mapping[str, Any] | None = None,
    growth: int = 12,
    compression: float = 0.5,
    in_channels: int = 3,
    width: int | None = None,
) -> DenseNetBC:
    """Builds a DenseNet-BC, by default that of the variance-shift paper: depth 100, growth 12, 99 norms.

    A layer is ``norm1 relu conv1(1x1) norm2 relu conv2(3x3)``, put behind its input's channels; a transition
    is ``norm relu conv(1x1)`` and average pooling, without noise.

    Args:
        depth: ``6 n + 4``, with n layers in each of three stages.
        num_classes: Number of classes.
        dropout: Strength of the noise, a DROP probability for dropout; see `Parts`.
        placement: Where it stands: ``"a"`` in front of the second norm of each layer, ``"b"`` in front of its
            second convolution, ``"G"`` behind that, as common implementations have it; others see `Parts`.
            ``"T"`` stands behind the concatenation, ``"P"`` gates a layer's new channels.
        noise: Kind of noise, see `Parts`.
        norm: Kind of norm, see `Parts`.
        norm_options: Arguments of the norm, see `Parts`.
        growth: Channels that each layer adds.
        compression: Share of the channels that a transition keeps, in (0, 1].
        in_channels: Channels of the input.
        width: Channels of the stem, by default ``2 growth``.

    Returns:
        The network, in training mode.

    Raises:
        ValueError: If an argument is out of range.
    """
    layers = blocks_of(depth, 6, 4)
    check_counts(num_classes=num_classes, growth=growth, in_channels=in_channels)
    if width is None:
        width = 2 * growth
    check_counts(width=width)
    if not 0 < compression <= 1:
        raise ValueError(f"compression={compression!r} must be in (0, 1].")
    return DenseNetBC(
        layers,
        num_classes,
        Parts(dropout, placement, noise, norm, norm_options),
        growth=growth,
        compression=compression,
        in_channels=in_channels,
        width=width,
    )
