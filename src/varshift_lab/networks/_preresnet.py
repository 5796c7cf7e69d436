"""Pre-activation residual networks for small images (He et al. 2016, arXiv 1603.05027)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from ._chain import Step
from ._parts import Noise, Norm, Parts, block_kind, blocks_of, conv1x1, conv3x3
from ._placement import Placement
from ._residual import Block, Fork, ResidualNetwork, padding, projection

BlockKind = Literal["basic", "bottleneck"]
Shortcut = Literal["conv", "pad"]
EXPANSIONS: dict[str, int] = {"basic": 1, "bottleneck": 4}

# The code that the variance-shift paper builds on changes to bottlenecks from this nominal depth on.
_BOTTLENECKS_FROM_DEPTH = 44


def preactivation_block(
    channels: int,
    planes: int,
    stride: int,
    parts: Parts,
    *,
    block: str = "basic",
    fork: Fork = "input",
    shortcut: Shortcut = "conv",
    normalised: bool = False,
) -> Block:
    """``norm1 act conv1 norm2 act conv2`` (basic) or three such triples (bottleneck), plus the trunk.

    Behind an input that is normalised already the first norm and ReLU are left out.
    """
    steps: list[Step] = [] if normalised else ["norm", "act"]
    if block == "basic":
        steps += [conv3x3(channels, planes, stride=stride), "norm", "act", conv3x3(planes, planes)]
    else:
        steps += [conv1x1(channels, planes), "norm", "act", conv3x3(planes, planes, stride=stride)]
        steps += ["norm", "act", conv1x1(planes, 4 * planes)]
    make = padding if shortcut == "pad" else projection
    detour = make(channels, planes * EXPANSIONS[block], stride)
    return Block(channels, steps, parts, shortcut=detour, fork=fork)


class PreResNet(ResidualNetwork):
    """A 3x3 stem, three stages of pre-activation blocks, then norm, ReLU, average pooling and a linear layer.

    Stages have ``width``, ``2 width`` and ``4 width`` planes; the second and third halve the resolution.
    Convolutions start as ``N(0, 2 / (k k out_channels))``; a block that changes the shape has a 1x1
    convolution without a norm as its shortcut, or none but means over 2x2 windows and channels of zeros.

    Shapes: input ``(N, in_channels, H, W)`` with H and W of at least 1, output ``(N, num_classes)``.

    Args:
        blocks: Blocks per stage, at least 1.
        num_classes: Number of classes.
        block: ``"basic"`` or ``"bottleneck"`` (expansion 4).
        shortcut: ``"conv"``, or ``"pad"`` for shortcuts without weights; the stem then has a norm and ReLU of
            its own, which the first block is spared, as in the released code of batch Kalman norm.
        dropout: Strength of the noise, see `Parts`; 0 builds none.
        placement: ``"a"``: immediately before the last norm of each residual branch; ``"b"``: before its
            last convolution; ``"before_pooling"``: one dropout on the map that is averaged; ``"last"``: one
            dropout before the linear layer; ``"none"``; or one of the letters A to G, T, P: see `Parts`.
        noise: Kind of noise, see `Parts`.
        norm: Kind of norm, see `Parts`.
        norm_options: Arguments of the norm, see `Parts`.
        in_channels: Channels of the input.
        width: Planes of the first stage.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        blocks: int,
        num_classes: int = 10,
        *,
        block: BlockKind = "basic",
        dropout: float = 0.0,
        placement: Placement = "b",
        noise: Noise = "dropout",
        norm: Norm = "batch",
        norm_options: Mapping[str, Any] | None = None,
        in_channels: int = 3,
        width: int = 16,
        shortcut: Shortcut = "conv",
    ) -> None:
        block_kind(block, EXPANSIONS)
        if shortcut not in get_args(Shortcut):
            raise ValueError(f"shortcut={shortcut!r} is unknown: use one of {', '.join(get_args(Shortcut))}.")
        normalised = iter((shortcut == "pad",))  # the first block of all, then none

        def make_block(channels: int, planes: int, stride: int, parts: Parts) -> Block:
            first = next(normalised, False)
            return preactivation_block(
                channels, planes, stride, parts, block=block, shortcut=shortcut, normalised=first
            )

        super().__init__(
            blocks,
            num_classes,
            Parts(dropout, placement, noise, norm, norm_options),
            make_block,
            expansion=EXPANSIONS[block],
            in_channels=in_channels,
            stem=width,
            width=width,
            stem_steps=["norm", "act"] if shortcut == "pad" else [],
            head_steps=["norm", "act"],
        )


def preresnet(
    depth: int = 110,
    num_classes: int = 10,
    *,
    dropout: float = 0.0,
    placement: Placement = "b",
    block: BlockKind | None = None,
    noise: Noise = "dropout",
    norm: Norm = "batch",
    norm_options: Mapping[str, Any] | None = None,
    in_channels: int = 3,
    width: int = 16,
    shortcut: Shortcut = "conv",
) -> PreResNet:
    """Builds a pre-activation residual network by its depth.

    Without `block`, depth is nominal, as in the variance-shift paper (arXiv 1801.05134) and the code it
    builds on: ``(depth - 2) / 6`` blocks per stage, bottlenecks from depth 44 on. Its "PreResNet-110" has
    therefore 18 bottlenecks per stage (164 layers, 163 norms, 1,703,258 parameters). With `block`, depth
    counts layers: ``6 n + 2`` for basic blocks, ``9 n + 2`` for bottlenecks.

    Args:
        depth: Depth as above.
        num_classes: Number of classes.
        dropout: Strength of the noise, a DROP probability for dropout; see `Parts`.
        placement: Where it stands, see `PreResNet`.
        block: ``"basic"``, ``"bottleneck"``, or None for the paper's choice.
        noise: Kind of noise, see `Parts`.
        norm: Kind of norm, see `Parts`.
        norm_options: Arguments of the norm, see `Parts`.
        in_channels: Channels of the input.
        width: Planes of the first stage.
        shortcut: ``"conv"`` or ``"pad"``, see `PreResNet`.

    Returns:
        The network, in training mode.

    Raises:
        ValueError: If no number of blocks gives this depth, or an argument is out of range.
    """
    blocks = blocks_of(depth, 9 if block == "bottleneck" else 6, 2, f" for block={block!r}")
    if block is None:
        block = "bottleneck" if depth >= _BOTTLENECKS_FROM_DEPTH else "basic"
    return PreResNet(
        blocks,
        num_classes,
        block=block,
        dropout=dropout,
        placement=placement,
        noise=noise,
        norm=norm,
        norm_options=norm_options,
        in_channels=in_channels,
        width=width,
        shortcut=shortcut,
    )
