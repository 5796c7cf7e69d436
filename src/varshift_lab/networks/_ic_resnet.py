"""Residual networks of independent components (Chen et al. 2019, arXiv 1905.05928)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

from ._chain import Step
from ._parts import Noise, Norm, Parts, block_kind, blocks_of, conv1x1, conv3x3
from ._placement import IC, ICPlacement
from ._preresnet import EXPANSIONS, BlockKind
from ._residual import Block, ResidualNetwork, projection

Variant = Literal["A", "B", "C"]

# What stands around every convolution: A and B normalise its input, C its output.
_ORDERS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "A": (("act", "norm"), ()),
    "B": (("norm",), ("act",)),
    "C": ((), ("act", "norm")),
}


class ICResNet(ResidualNetwork):
    """A residual network of independent components, see `ic_resnet`."""


def ic_resnet(
    depth: int = 20,
    num_classes: int = 10,
    *,
    variant: Variant = "A",
    dropout: float = 0.05,
    placement: ICPlacement = "ic",
    block: BlockKind = "basic",
    noise: Noise = "dropout",
    norm: Norm = "batch",
    norm_options: Mapping[str, Any] | None = None,
    final_norm: bool = True,
    in_channels: int = 3,
    width: int = 16,
) -> ICResNet:
    """Builds a residual network whose weights stand behind independent components: a norm, then noise.

    The units follow the paper's three orders, ReLU-IC-Conv (A, recommended), IC-Conv-ReLU (B) and
    Conv-ReLU-IC (C). The paper's body could not be read: stem, head and shortcuts are RECONSTRUCTED. There is
    no activation behind the sum; shortcuts that change the shape are a bare 1x1 convolution on the raw input.
    The stem is a convolution, in C followed by ReLU and IC. The head is ReLU and norm in A, a norm in B, and
    nothing in C.

    Args:
        depth: ``6 n + 2`` for basic blocks, ``9 n + 2`` for bottlenecks.
        num_classes: Number of classes.
        variant: ``"A"``, ``"B"`` or ``"C"``.
        dropout: Strength of the noise, a DROP probability for dropout; see `Parts`. 0.05 is that of two
            re-implementations.
        placement: ``"ic"``: behind every norm of the branches (and of C's stem); ``"none"``: the control,
            which has only moved its norms; others see `Parts`. Norm and activation stand in another order
            than in the blocks that the letters were made for: B and E are where C and F are.
        block: ``"basic"`` or ``"bottleneck"`` (expansion 4).
        noise: Kind of noise, see `Parts`.
        norm: Kind of norm, see `Parts`.
        norm_options: Arguments of the norm, see `Parts`.
        final_norm: Whether A and B have a norm in front of the pooling. Without it the trunk reaches the
            classifier at 7 to 11 times unit size in A.
        in_channels: Channels of the input.
        width: Planes of the first stage.

    Returns:
        The network, in training mode.

    Raises:
        ValueError: If an argument is out of range.
    """
    block_kind(block, EXPANSIONS)
    if variant not in _ORDERS:
        raise ValueError(f"variant={variant!r} is unknown: use one of {', '.join(_ORDERS)}.")
    head = {"A": ["act", "norm"], "B": ["norm"], "C": []}[variant]
    return ICResNet(
        blocks_of(depth, 9 if block == "bottleneck" else 6, 2, f" for block={block!r}"),
        num_classes,
        Parts(dropout, placement, noise, norm, norm_options, IC),
        partial(_block, block=block, variant=variant),
        expansion=EXPANSIONS[block],
        in_channels=in_channels,
        stem=width,
        width=width,
        stem_steps=["act", "norm"] if variant == "C" else [],
        head_steps=[step for step in head if final_norm or step != "norm"],
        stem_noise=placement == "ic",
    )


def _block(channels: int, planes: int, stride: int, parts: Parts, *, block: str, variant: str) -> Block:
    out = planes * EXPANSIONS[block]
    if block == "basic":
        weights = [conv3x3(channels, planes, stride=stride), conv3x3(planes, planes)]
    else:
        weights = [
            conv1x1(channels, planes),
            conv3x3(planes, planes, stride=stride),
            conv1x1(planes, out),
        ]
    front, back = _ORDERS[variant]
    steps: list[Step] = [step for weight in weights for step in (*front, weight, *back)]
    return Block(channels, steps, parts, shortcut=projection(channels, out, stride))
