"""Mean and variance of what enters a layer: of one batch, pooled over several, and remembered."""

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


class RunningMoments:
    """The remembered mean and variance of one layer's input, and what was seen since the last step.

    Args:
        channels: Channels of the input.
        device: Where the layer is.
    """

    def __init__(self, channels: int, device: torch.device) -> None:
        wide = wide_type(device)
        self.mean = torch.zeros(channels, dtype=wide, device=device)
        self.variance = torch.ones(channels, dtype=wide, device=device)
        # Sums of h - mean and of its square, then elements and rows: all add up over calls and processes.
        self.pending = torch.zeros(2 * channels + 2, dtype=wide, device=device)

    def to(self, device: torch.device) -> None:
        """Follows its layer to another device."""
        if self.mean.device != device:
            wide = wide_type(device)
            self.mean, self.variance = self.mean.to(device, wide), self.variance.to(device, wide)
            self.pending = self.pending.to(device, wide)

    def add(self, batch: BatchMoments) -> None:
        """Adds what one call of the layer saw."""
        offset = batch.mean - self.mean
        sums = torch.cat([offset, batch.variance + offset.square()])
        channels = len(self.mean)
        self.pending[: 2 * channels].add_(sums, alpha=batch.count)
        self.pending[-2].add_(batch.count)
        self.pending[-1].add_(batch.rows)

    def absorb(self, pending: Tensor, decay: float, about_running_mean: bool) -> None:
        """Moves mean and variance by what was seen; nothing was, or something not finite: they stay."""
        channels = len(self.mean)
        count = pending[-2].clamp(min=1)
        first, second = pending[:channels] / count, pending[channels : 2 * channels] / count
        seen = (pending[-2] > 0) & pending.isfinite().all()
        mean = self.mean + (1 - decay) * first
        # Both are exact in the moved frame: h - mean_new = (h - mean_old) - shift.
        shift = (1 - decay) * first
        batch = second - 2 * shift * first + shift.square() if about_running_mean else second - first.square()
        variance = decay * self.variance + (1 - decay) * batch.clamp(min=0)
        self.mean.copy_(torch.where(seen, mean, self.mean))
        self.variance.copy_(torch.where(seen, variance, self.variance))

    def floored(self, groups: int, relative_eps: float, eps: float) -> Tensor:
        """The variance with its floor: a share of the largest within each group, and a constant."""
        largest = self.variance.view(groups, -1).amax(1, keepdim=True)
        return (self.variance.view(groups, -1) + relative_eps * largest + eps).flatten()
