"""Mean and variance of what enters a layer in one call."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

Rows = Literal["positions", "batch", "none"]
_CANCELLATION = 16.0  # up to this ratio of squared mean to variance, single precision keeps six digits


def wide_type(device: torch.device) -> torch.dtype:
    """The type in which sums are kept: double precision, where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


@dataclass(slots=True)
class BatchMoments:
    """What one call of a layer saw.

    Attributes:
        count: Elements per channel.
        rows: Rows of the dense layer that the call amounts to, as q² counts them.
        mean: Mean per channel.
        variance: Biased variance per channel.
    """

    count: int
    rows: int
    mean: Tensor
    variance: Tensor


def batch_moments(module: nn.Module, x: Tensor, out: Tensor, rule: Rows) -> BatchMoments | None:
    """The moments of a layer's input, None where it has no elements."""
    x = x.detach()
    if isinstance(module, _ConvNd):
        axes = module.weight.dim() - 2
        x = x if x.dim() == axes + 2 else x.unsqueeze(0)
        channels, positions = x.shape[1], x.shape[0] * math.prod(out.shape[out.dim() - axes :])
        samples = x.shape[0]
    else:
        x = x if x.dim() > 1 else x.unsqueeze(0)
        samples, channels = x.shape[0], x.shape[-1]
        x = x.reshape(-1, channels)
        positions = x.shape[0]
    if x.numel() == 0 or channels == 0:
        return None
    count = x.numel() // channels
    mean, variance = _moments(x, count)
    return BatchMoments(count, samples if rule == "batch" else positions, mean, variance)


def _moments(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    wide = wide_type(x.device)
    maps = x.shape[0] * x.shape[1]
    if x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64):
        if x.dim() > 2 and x.is_contiguous() and x.numel() >= 16 * maps:
            rows = x.view(maps, -1)
            total = rows.sum(1).view(x.shape[:2]).sum(0, dtype=wide)
            squares = torch.linalg.vector_norm(rows, dim=1).view(x.shape[:2]).to(wide).square_().sum(0)
        elif (flat := _channels_last(x)) is not None:
            total = flat.sum(0, dtype=x.dtype).to(wide)
            squares = torch.linalg.vector_norm(flat, dim=0).to(wide).square_()
        else:
            return _moments_plainly(x, wide)
        mean = total / count
        variance = squares / count - mean.square()
        if torch.compiler.is_compiling() or not bool((mean.square() > _CANCELLATION * variance).any()):
            return mean, variance
    return _moments_plainly(x, wide)


def _channels_last(x: Tensor) -> Tensor | None:
    """A view (elements, channels), None where the layout does not allow one."""
    moved = x.movedim(1, -1)
    return moved.reshape(-1, x.shape[1]) if moved.is_contiguous() else None


def _moments_plainly(x: Tensor, wide: torch.dtype) -> tuple[Tensor, Tensor]:
    axes = [axis for axis in range(x.dim()) if axis != 1]
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    variance, mean = torch.var_mean(x, axes, correction=0)
    return mean.to(wide), variance.to(wide)
