"""Densely connected networks without bottlenecks and compression (Huang et al. 2017, arXiv 1608.06993)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ._chain import Chain
from ._parts import HalfSize, Noise, Norm, Parts, blocks_of, check_counts, conv1x1, conv3x3
from ._placement import Placement
from ._residual import Block, Network


class DenseNet(Network):
    """A DenseNet of single convolutions, see `densenet`."""

    def __init__(
        self, layers: int, num_classes: int, parts: Parts, *, growth: int, in_channels: int, width: int
    ) -> None:
        super().__init__()
        self.begin(in_channels, [conv3x3(in_channels, width)], parts)
        channels, stages = width, []
        for stage in range(3):
            blocks: list[nn.Module] = []
            for _ in range(layers):
                blocks.append(
                    Block(channels, ["norm", "act", conv3x3(channels, growth)], parts, join="concat")
                )
                channels += growth
            if stage < 2:
                # Behind its convolution as in the layers, which is in front of the pooling here.
                noise = parts.noise_at("G")
                behind = [] if noise is None else [noise]
                steps = ["norm", "act", conv1x1(channels, channels), *behind, HalfSize()]
                blocks.append(Chain(channels, steps, parts.quiet()))
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.finish(channels, num_classes, ["norm", "act"], parts)


def densenet(
    depth: int = 40,
    num_classes: int = 10,
    *,
    dropout: float = 0.0,
    placement: Placement = "G",
    noise: Noise = "dropout",
    norm: Norm = "batch",
    norm_options: Mapping[str, Any] | None = None,
    growth: int = 12,
    in_channels: int = 3,
    width: int = 16,
) -> DenseNet:
    """Builds a DenseNet as first published, of layers ``norm relu conv(3x3)``, each put behind its input.

    A transition is ``norm relu conv(1x1)`` and average pooling, with as many channels out as in. With
    placement ``"G"`` noise stands behind every convolution but the stem, those of the transitions included,
    as in the original code; whatever norm comes next reads it directly.

    Args:
        depth: ``3 n + 4``, with n layers in each of three stages.
        num_classes: Number of classes.
        dropout: Strength of the noise, a DROP probability for dropout; see `Parts`.
        placement: Where it stands; a layer has one norm and one weight, so ``"A"``, ``"a"`` and ``"D"`` are
            one place, in front of the norm, and so are ``"b"``, ``"C"`` and ``"F"``, in front of the
            convolution. See `Parts`.
        noise: Kind of noise, see `Parts`.
        norm: Kind of norm, see `Parts`.
        norm_options: Arguments of the norm, see `Parts`.
        growth: Channels that each layer adds.
        in_channels: Channels of the input.
        width: Channels of the stem.

    Returns:
        The network, in training mode.

    Raises:
        ValueError: If no number of layers gives this depth, or an argument is out of range.
    """
    layers = blocks_of(depth, 3, 4)
    check_counts(num_classes=num_classes, growth=growth, in_channels=in_channels, width=width)
    return DenseNet(
        layers,
        num_classes,
        Parts(dropout, placement, noise, norm, norm_options),
        growth=growth,
        in_channels=in_channels,
        width=width,
    )
