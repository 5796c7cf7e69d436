"""Binary networks with and without batch norm (Chen et al. 2021, arXiv 2104.08215)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from varshift.functional import KalmanState, norm_free_betas
from varshift.nn import (
    BinaryConv2d,
    NormFreeBinaryBlock,
    NormFreeBinaryPairBlock,
    RPReLU,
    RSign,
    ScaledStdConv2d,
)

from ._chain import Chain, Signal, Step
from ._parts import HalfSize, Noise, Norm, Parts, check_counts, convolution
from ._placement import HeadPlacement
from ._residual import Block, Network

BinaryNorm = Literal["free", "batch", "frn", "group", "renorm", "none"]
BinaryPlacement = Literal["none", "a", "b", "A", "D", "G", "T", "P", "before_pooling", "last"]

# Output channels of ReActNet-A's blocks as multiples of the stem's; the first doubling is not strided.
_A_WIDTHS = (2, 4, 4, 8, 8, 16, 16, 16, 16, 16, 16, 32, 32)
_A_STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
_18_WIDTHS = (1, 2, 4, 8)
_18_BLOCKS = 4
_LATENT = 1e-3  # latent weights of binary convolutions that nothing standardises start in U[0, this)


class BinaryResNet(Network):
    """ReActNet-18 (the Bi-Real shape), see `binary_resnet`."""

    def __init__(
        self,
        num_classes: int,
        parts: Parts,
        *,
        binary_weights: bool,
        stem: str,
        in_channels: int,
        width: int,
    ) -> None:
        super().__init__()
        free = parts.norm == "free"
        small = stem == "cifar"
        _begin(self, in_channels, width, 3 if small else 7, 1 if small else 2, parts)
        starts = [index == 0 for _ in _18_WIDTHS for index in range(_18_BLOCKS)]
        betas, number = norm_free_betas(starts), 0
        channels, stages = width, []
        for stage, factor in enumerate(_18_WIDTHS):
            pooled = stage == 0 and not small
            blocks: list[nn.Module] = [_Stateless(nn.MaxPool2d(3, 2, 1))] if pooled else []
            for index in range(_18_BLOCKS):
                out, stride = width * factor, 2 if stage > 0 and index == 0 else 1
                if free:
                    (beta,) = betas[number]
                    inner = NormFreeBinaryBlock(
                        channels, out, stride, beta=beta, binary_weights=binary_weights
                    )
                    blocks.append(_Stateless(inner))
                else:
                    blocks.append(_block(channels, out, 3, stride, parts, binary_weights))
                channels, number = out, number + 1
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.finish(channels, num_classes, [], parts)


class ReActNet(Network):
    """ReActNet-A (the MobileNet shape), see `reactnet`."""

    def __init__(
        self, num_classes: int, parts: Parts, *, binary_weights: bool, in_channels: int, width: int
    ) -> None:
        super().__init__()
        free = parts.norm == "free"
        _begin(self, in_channels, width, 3, 2, parts)
        betas = norm_free_betas([stride > 1 for stride in _A_STRIDES], branches=2)
        channels = width
        blocks: list[nn.Module] = []
        for factor, stride, (first, second) in zip(_A_WIDTHS, _A_STRIDES, betas, strict=True):
            out = width * factor
            if free:
                inner = NormFreeBinaryPairBlock(
                    channels, out, stride, betas=(first, second), binary_weights=binary_weights
                )
                blocks.append(_Stateless(inner))
            else:
                blocks.append(_block(channels, channels, 3, stride, parts, binary_weights))
                blocks.append(
                    _block(channels, out, 1, 1, parts, binary_weights)
                    if channels == out
                    else _Doubling(channels, parts, binary_weights)
                )
            channels = out
        self.stages = nn.Sequential(nn.Sequential(*blocks))
        self.finish(channels, num_classes, [], parts)


class _Stateless(nn.Module):
    """A module among blocks, which hand a state along."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor, state: KalmanState | None = None) -> Signal:
        return self.module(x), None


class _Doubling(nn.Module):
    """Two 1x1 convolutions on the same signs, each with its own shortcut, side by side."""

    def __init__(self, channels: int, parts: Parts, binary_weights: bool) -> None:
        super().__init__()
        self.sign = RSign(channels)
        convolutions = [_weight(channels, channels, 1, 1, binary_weights) for _ in range(2)]
        self.halves = nn.ModuleList(Chain(channels, [conv, "norm"], parts) for conv in convolutions)
        self.drop_path = parts.noise_at("P") or nn.Identity()
        self.activation = RPReLU(2 * channels)
        self.behind_sum = parts.noise_at("T") or nn.Identity()

    def forward(self, x: Tensor, state: KalmanState | None = None) -> Signal:
        signs = self.sign(x)
        halves = [x + self.drop_path(half(signs)[0]) for half in self.halves]
        return self.behind_sum(self.activation(torch.cat(halves, 1))), None


def _block(channels: int, out: int, kernel: int, stride: int, parts: Parts, binary_weights: bool) -> Block:
    """Sign, binary convolution and norm, plus the trunk, then RPReLU."""
    weight = _weight(channels, out, kernel, stride, binary_weights)
    shortcut: list[Step] = [HalfSize()] if stride > 1 else []
    if channels != out:
        shortcut += [_weight(channels, out, 1, 1, binary_weights), "norm"]
    steps = [RSign(channels), weight, "norm"]
    return Block(channels, steps, parts, shortcut=shortcut, after=RPReLU(out))


def _weight(channels: int, out: int, kernel: int, stride: int, binary: bool) -> nn.Conv2d:
    if not binary:
        return convolution(channels, out, kernel, stride)
    conv = BinaryConv2d(channels, out, kernel, stride, kernel // 2, standardise=False)
    nn.init.uniform_(conv.weight, 0, _LATENT)
    return conv


def _begin(network: Network, channels: int, width: int, kernel: int, stride: int, parts: Parts) -> None:
    """A real-valued convolution: standardised where norms are replaced, else with the norm."""
    if parts.norm == "free":
        stem = ScaledStdConv2d(channels, width, kernel, stride, kernel // 2, bias=False)
        network.begin(channels, [stem], parts.quiet())
    else:
        network.begin(channels, [convolution(channels, width, kernel, stride), "norm"], parts)


def _parts(
    dropout: float, placement: str, noise: Noise, norm: str | Norm, norm_options: Mapping[str, Any] | None
) -> Parts:
    placements = get_args(HeadPlacement) if norm == "free" else get_args(BinaryPlacement)
    if norm == "free" and norm_options:
        raise ValueError(f"norm_options={norm_options!r} has no norm to go to: leave it out.")
    return Parts(dropout, placement, noise, norm, norm_options, placements, get_args(BinaryNorm))


def binary_resnet(
    depth: int = 18,
    num_classes: int = 10,
    *,
    dropout: float = 0.0,
    placement: BinaryPlacement = "none",
    noise: Noise = "dropout",
    norm: BinaryNorm = "free",
    norm_options: Mapping[str, Any] | None = None,
    binary_weights: bool = True,
    stem: Literal["cifar", "imagenet"] = "cifar",
    in_channels: int = 3,
    width: int = 64,
) -> BinaryResNet:
    """Builds ReActNet-18: four stages of four blocks of one 3x3 binary convolution with its own shortcut.

    Stem and classifier are real-valued. The paper's code has no dropout; the blocks without batch norm have
    places for it at the head only.

    Args:
        depth: 18.
        num_classes: Number of classes.
        dropout: Strength of the noise, a DROP probability for dropout; see `Parts`.
        placement: Where it stands, see `Parts`; branches end with a norm, as in `resnet`.
        noise: Kind of noise, see `Parts`.
        norm: ``"free"``: no norm but standardised weights and scaled branches, the paper's method;
            ``"batch"``: the network that it starts from; ``"none"``: that with its norms taken out and
            nothing in their place; or another norm, see `Parts`.
        norm_options: Arguments of the norm, see `Parts`.
        binary_weights: Whether weights are one-bit, or only activations (the first of two training steps).
        stem: ``"cifar"``: 3x3; ``"imagenet"``: 7x7 at half the resolution, and max-pooling.
        in_channels: Channels of the input.
        width: Channels of the first stage.

    Returns:
        The network, in training mode.

    Raises:
        ValueError: If an argument is out of range.
    """
    if depth != 18:
        raise ValueError(f"depth={depth!r} must be 18: the paper has no other network of this kind.")
    if stem not in ("cifar", "imagenet"):
        raise ValueError(f"stem={stem!r} is unknown: use 'cifar' or 'imagenet'.")
    check_counts(num_classes=num_classes, in_channels=in_channels, width=width)
    return BinaryResNet(
        num_classes,
        _parts(dropout, placement, noise, norm, norm_options),
        binary_weights=binary_weights,
        stem=stem,
        in_channels=in_channels,
        width=width,
    )


def reactnet(
    num_classes: int = 1000,
    *,
    dropout: float = 0.0,
    placement: BinaryPlacement = "none",
    noise: Noise = "dropout",
    norm: BinaryNorm = "free",
    norm_options: Mapping[str, Any] | None = None,
    binary_weights: bool = True,
    in_channels: int = 3,
    width: int = 32,
) -> ReActNet:
    """Builds ReActNet-A: 13 blocks of a 3x3 and a 1x1 binary convolution, 32 times smaller maps at the end.

    See `binary_resnet` for the arguments. There is no variant for small images: of 32 pixels one is left.

    Args:
        num_classes: Number of classes.
        dropout: Strength of the noise.
        placement: Where it stands.
        noise: Kind of noise.
        norm: Kind of norm.
        norm_options: Arguments of the norm.
        binary_weights: Whether weights are one-bit.
        in_channels: Channels of the input.
        width: Channels of the stem.

    Returns:
        The network, in training mode.

    Raises:
        ValueError: If an argument is out of range.
    """
    check_counts(num_classes=num_classes, in_channels=in_channels, width=width)
    return ReActNet(
        num_classes,
        _parts(dropout, placement, noise, norm, norm_options),
        binary_weights=binary_weights,
        in_channels=in_channels,
        width=width,
    )
