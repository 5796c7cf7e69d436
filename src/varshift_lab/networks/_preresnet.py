"""Pre-activation residual networks for small images (He et al. 2016, arXiv 1603.05027)."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from ._placement import Placement, check_placement, noise_at

Block = Literal["basic", "bottleneck"]

# The code that the variance-shift paper builds on changes to bottlenecks from this nominal depth on.
_BOTTLENECKS_FROM_DEPTH = 44


class _BasicBlock(nn.Module):
    """``norm1 relu conv1 [a] norm2 relu [b] conv2``, plus the trunk."""

    expansion: ClassVar[int] = 1

    def __init__(
        self, in_channels: int, width: int, stride: int, dropout: float, placement: Placement
    ) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = _convolution(in_channels, width, 3, stride)
        self.before_norm = noise_at("a", placement, dropout)()
        self.norm2 = nn.BatchNorm2d(width)
        self.before_conv = noise_at("b", placement, dropout)()
        self.conv2 = _convolution(width, width, 3)
        self.shortcut = _shortcut(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.conv1(F.relu(self.norm1(x)))
        branch = self.norm2(self.before_norm(branch))
        branch = self.conv2(self.before_conv(F.relu(branch)))
        return self.shortcut(x) + branch


class _Bottleneck(nn.Module):
    """``norm1 relu conv1(1x1) norm2 relu conv2(3x3) [a] norm3 relu [b] conv3(1x1)``, plus the trunk."""

    expansion: ClassVar[int] = 4

    def __init__(
        self, in_channels: int, width: int, stride: int, dropout: float, placement: Placement
    ) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = _convolution(in_channels, width, 1)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv2 = _convolution(width, width, 3, stride)
        self.before_norm = noise_at("a", placement, dropout)()
        self.norm3 = nn.BatchNorm2d(width)
        self.before_conv = noise_at("b", placement, dropout)()
        self.conv3 = _convolution(width, 4 * width, 1)
        self.shortcut = _shortcut(in_channels, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.conv1(F.relu(self.norm1(x)))
        branch = self.conv2(F.relu(self.norm2(branch)))
        branch = self.norm3(self.before_norm(branch))
        branch = self.conv3(self.before_conv(F.relu(branch)))
        return self.shortcut(x) + branch


def _convolution(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    if in_channels == out_channels and stride == 1:
        return nn.Identity()
    return _convolution(in_channels, out_channels, 1, stride)


_BLOCKS: dict[str, type[_BasicBlock] | type[_Bottleneck]] = {"basic": _BasicBlock, "bottleneck": _Bottleneck}


class PreResNet(nn.Module):
    """A 3x3 stem, three stages of pre-activation blocks, then norm, ReLU, average pooling and a linear layer.

    Stages have ``width``, ``2 width`` and ``4 width`` planes; the second and third halve the resolution.
    Convolutions start as ``N(0, 2 / (k k out_channels))``; a block that changes the shape has a 1x1
    convolution without a norm as its shortcut.

    Shapes: input ``(N, in_channels, H, W)`` with H and W of at least 1, output ``(N, num_classes)``.

    Args:
        blocks: Blocks per stage, at least 1.
        num_classes: Number of classes.
        block: ``"basic"`` or ``"bottleneck"`` (expansion 4).
        dropout: DROP probability in [0, 1); 0 builds no dropout.
        placement: ``"a"``: immediately before the last norm of each residual branch; ``"b"``: before its
            last convolution; ``"before_pooling"``: one dropout on the map that is averaged; ``"last"``: one
            dropout before the linear layer; ``"none"``.
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
        block: Block = "basic",
        dropout: float = 0.0,
        placement: Placement = "b",
        in_channels: int = 3,
        width: int = 16,
    ) -> None:
        super().__init__()
        check_placement(placement, dropout)
        if block not in _BLOCKS:
            raise ValueError(f"block={block!r} is unknown: use one of {', '.join(_BLOCKS)}.")
        for name, value in (
            ("blocks", blocks),
            ("num_classes", num_classes),
            ("in_channels", in_channels),
            ("width", width),
        ):
            if value < 1:
                raise ValueError(f"{name}={value!r} must be at least 1.")
        kind = _BLOCKS[block]
        self.stem = _convolution(in_channels, width, 3)
        channels, stages = width, []
        for stage in range(3):
            layers = []
            for index in range(blocks):
                stride = 2 if stage > 0 and index == 0 else 1
                layers.append(kind(channels, width * 2**stage, stride, dropout, placement))
                channels = width * 2**stage * kind.expansion
            stages.append(nn.Sequential(*layers))
        self.stages = nn.Sequential(*stages)
        self.norm = nn.BatchNorm2d(channels)
        self.before_pooling = noise_at("before_pooling", placement, dropout)()
        self.before_linear = noise_at("last", placement, dropout)()
        self.linear = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, 0.0, math.sqrt(2 / fan_out))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the class scores of a batch of images."""
        x = self.before_pooling(F.relu(self.norm(self.stages(self.stem(x)))))
        return self.linear(self.before_linear(x.mean((2, 3))))


def preresnet(
    depth: int = 110,
    num_classes: int = 10,
    *,
    dropout: float = 0.0,
    placement: Placement = "b",
    block: Block | None = None,
    in_channels: int = 3,
    width: int = 16,
) -> PreResNet:
    """Builds a pre-activation residual network by its depth.

    Without `block`, depth is nominal, as in the variance-shift paper (arXiv 1801.05134) and the code it
    builds on: ``(depth - 2) / 6`` blocks per stage, bottlenecks from depth 44 on. Its "PreResNet-110" has
    therefore 18 bottlenecks per stage (164 layers, 163 norms, 1,703,258 parameters). With `block`, depth
    counts layers: ``6 n + 2`` for basic blocks, ``9 n + 2`` for bottlenecks.

    Args:
        depth: Depth as above.
        num_classes: Number of classes.
        dropout: DROP probability in [0, 1).
        placement: ``"a"``, ``"b"``, ``"before_pooling"``, ``"last"`` or ``"none"``, see `PreResNet`.
        block: ``"basic"``, ``"bottleneck"``, or None for the paper's choice.
        in_channels: Channels of the input.
        width: Planes of the first stage.

    Returns:
        The network, in training mode.

    Raises:
        ValueError: If no number of blocks gives this depth, or an argument is out of range.
    """
    layers = 9 if block == "bottleneck" else 6
    blocks, rest = divmod(depth - 2, layers)
    if rest or blocks < 1:
        near = layers * max(blocks, 1) + 2
        raise ValueError(
            f"depth={depth!r} must be {layers} n + 2 with n of at least 1 for block={block!r}: use {near} or "
            f"{near + layers}."
        )
    if block is None:
        block = "bottleneck" if depth >= _BOTTLENECKS_FROM_DEPTH else "basic"
    return PreResNet(
        blocks,
        num_classes,
        block=block,
        dropout=dropout,
        placement=placement,
        in_channels=in_channels,
        width=width,
    )
