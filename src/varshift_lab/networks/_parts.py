"""What every network is built from: its noise, its norm, and where the noise goes."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from varshift import nn as parts

from ._placement import BRANCH, check_placement
from ._split_norm import SplitBatchNorm2d, SplitBatchRenorm2d

NoiseKind = Literal["dropout", "channel", "uniform", "gaussian"]
NormKind = Literal["batch", "frn", "kalman", "group", "renorm", "none"]
Noise = NoiseKind | Callable[[float], nn.Module]
Norm = NormKind | Callable[[int], nn.Module]

NOISES = ("dropout", "channel", "uniform", "gaussian")
NORMS = ("batch", "frn", "kalman", "group", "renorm", "none")

# Batch norms of slices of the batch, for maps; batch Kalman norm has its own.
_SPLIT_NORMS = {"batch": SplitBatchNorm2d, "renorm": SplitBatchRenorm2d}

_GROUPS = 4  # the group norm that batch Kalman normalisation was compared with


@dataclass(frozen=True)
class Parts:
    """The noise and the norm of a network, checked.

    Args:
        dropout: Strength of the noise; 0 builds none. A DROP probability in [0, 1) for dropout, of elements
            and of channels, and for Gaussian noise, which has the variance of that dropout; the half-width
            beta in [0, 1] for uniform noise (Uout).
        placement: Where the noise goes, see `noise_slots`; besides, ``"T"``: on the trunk behind every join;
            ``"P"``: a gate per sample on every branch (drop path); ``"before_pooling"`` and ``"last"``: once,
            on the map that is averaged or in front of the classifier.
        noise: ``"dropout"``, ``"channel"`` (dropout of whole channels), ``"uniform"``, ``"gaussian"``, or a
            function of the strength that makes the layer.
        norm: ``"batch"``, ``"frn"`` (filter response norm; it takes the place of a norm and the ReLU right
            behind it), ``"kalman"`` (batch Kalman norm, with the state handed along), ``"group"``,
            ``"renorm"``, ``"none"``, or a function of the number of channels that makes the layer.
        norm_options: Keyword arguments of the norm's class; for ``"group"`` ``num_groups`` (4), of which each
            norm takes the greatest common divisor with its channels; for ``"batch"``, ``"renorm"`` and
            ``"kalman"`` ``splits``: slices of the batch that are normalised each for itself.
        placements: What placements this network knows.
        norms: What norms this network knows.

    Raises:
        ValueError: If an argument is out of range.
    """

    dropout: float = 0.0
    placement: str = "none"
    noise: Noise = "dropout"
    norm: Norm | str = "batch"
    norm_options: Mapping[str, Any] | None = None
    placements: Collection[str] = field(default=BRANCH, repr=False)
    norms: Collection[str] = field(default=NORMS, repr=False)

    def __post_init__(self) -> None:
        check_placement(self.placement, self.placements)
        if not callable(self.noise) and self.noise not in NOISES:
            raise ValueError(
                f"noise={self.noise!r} is unknown: use one of {', '.join(NOISES)}, or a function of the "
                "strength that makes the layer."
            )
        if not callable(self.norm) and self.norm not in self.norms:
            raise ValueError(
                f"norm={self.norm!r} is unknown: use one of {', '.join(self.norms)}, or a function of the "
                "number of channels that makes the layer."
            )
        if self.norm_options and (callable(self.norm) or self.norm == "none"):
            raise ValueError(f"norm_options={self.norm_options!r} has no norm to go to: leave it out.")
        if self.noise == "uniform":
            if not 0 <= self.dropout <= 1:
                raise ValueError(
                    f"dropout={self.dropout!r} must be a half-width in [0, 1] for uniform noise."
                )
        elif not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout!r} must be a drop probability in [0, 1).")
        if self.placement == "P" and self.noise != "dropout":
            raise ValueError(
                f"noise={self.noise!r} has no placement 'P', which is a gate per sample: use noise='dropout'."
            )

    def quiet(self) -> Parts:
        """The same without noise, for what lies outside its places."""
        return replace(self, placement="none", placements=("none",))

    def make_noise(self, dimensions: int = 2) -> nn.Module:
        """The noise layer; `dimensions` counts the axes behind the channels (0 for vectors, 2 for maps)."""
        if self.placement == "P":
            return DropPath(self.dropout)
        if callable(self.noise):
            return self.noise(self.dropout)
        if self.noise == "uniform":
            return parts.UniformDropout(self.dropout)
        if self.noise == "gaussian":
            return parts.GaussianDropout.matching(self.dropout)
        if self.noise == "channel" and dimensions:
            return nn.Dropout2d(self.dropout)
        return nn.Dropout(self.dropout)

    def noise_at(self, place: str, dimensions: int = 2) -> nn.Module | None:
        """The noise layer where `place` is the one asked for, else None; at strength 0 always None."""
        return self.make_noise(dimensions) if place == self.placement and self.dropout > 0 else None

    def make_norm(self, channels: int, dimensions: int = 2, *, activated: bool = False) -> nn.Module | None:
        """The norm layer, None for none; `activated` asks for the ReLU within, which FRN alone has."""
        if callable(self.norm):
            return self.norm(channels)
        if self.norm == "none":
            return None
        options = dict(self.norm_options or {})
        if self.norm == "group":
            groups = options.pop("num_groups", _GROUPS)
            return nn.GroupNorm(math.gcd(groups, channels), channels, **options)
        if self.norm == "kalman":
            options = {"transition": "identity", **options}
        if self.norm == "frn" and not dimensions:
            options = {"learn_eps": True, **options}
        if self.norm in _SPLIT_NORMS and dimensions and options.get("splits", 1) != 1:
            return _SPLIT_NORMS[self.norm](channels, **options)
        if self.norm in _SPLIT_NORMS:
            options.pop("splits", None)
        kind = {
            "batch": (nn.BatchNorm1d, nn.BatchNorm2d),
            "renorm": (parts.BatchRenorm1d, parts.BatchRenorm2d),
            "kalman": (parts.BatchKalmanNorm1d, parts.BatchKalmanNorm2d),
            "frn": (parts.FilterResponseNormTLU1d, parts.FilterResponseNormTLU2d)
            if activated
            else (parts.FilterResponseNorm1d, parts.FilterResponseNorm2d),
        }[self.norm][1 if dimensions else 0]
        return kind(channels, **options)


class DropPath(nn.Module):
    """Multiplies every sample with one gate, 0 with the DROP probability `p` and else ``1 / (1 - p)``."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Applies the gates in training."""
        if not self.training:
            return x
        return x * F.dropout(x.new_ones((x.shape[0], *[1] * (x.dim() - 1))), self.p)

    def extra_repr(self) -> str:
        """The drop probability."""
        return f"p={self.p}"


class HalfSize(nn.AvgPool2d):
    """Means over 2x2 windows, with a last window that is cut off for odd extents."""

    def __init__(self) -> None:
        super().__init__(2, ceil_mode=True, count_include_pad=False)


class PadChannels(nn.Module):
    """Puts channels of zeros in front and behind."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.before, self.after = before, after

    def forward(self, x: Tensor) -> Tensor:
        """Pads."""
        return F.pad(x, (0, 0, 0, 0, self.before, self.after))

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.before}, {self.after}"


def convolution(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1, bias: bool = False
) -> nn.Conv2d:
    """A convolution that keeps the size but for its stride."""
    return nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=bias)


@torch.no_grad()
def initialise(network: nn.Module) -> None:
    """Draws plain convolutions from ``N(0, 2 / (k k out_channels))``, as the papers' code does."""
    for module in network.modules():
        if type(module) is nn.Conv2d:
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
            nn.init.normal_(module.weight, 0.0, math.sqrt(2 / fan_out))
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def check_counts(**values: int) -> None:
    """Raises ValueError for a number that is not whole or below 1."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r} must be at least 1, and whole.")


def blocks_of(depth: int, layers: int, others: int, what: str = "") -> int:
    """Solves ``depth = layers n + others`` for n, or raises ValueError."""
    if isinstance(depth, bool) or not isinstance(depth, int):
        raise ValueError(f"depth={depth!r} must be a whole number.")
    blocks, rest = divmod(depth - others, layers)
    if rest or blocks < 1:
        near = layers * max(blocks, 1) + others
        raise ValueError(
            f"depth={depth!r} must be {layers} n + {others} with n of at least 1{what}: use {near} or "
            f"{near + layers}."
        )
    return blocks


def block_kind(block: str, known: Collection[str]) -> None:
    """Raises ValueError for a kind of block that is not known."""
    if block not in known:
        raise ValueError(f"block={block!r} is unknown: use one of {', '.join(known)}.")


conv1x1 = partial(convolution, kernel=1)
conv3x3 = partial(convolution, kernel=3)
