"""Count, mean and squared deviations of many histories at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Moments:
    """Count, mean and sum of squared deviations per sample."""

    def __init__(self, count: Tensor, mean: Tensor, squares: Tensor) -> None:
        self.count, self.mean, self.squares = count, mean, squares

    @classmethod
    def zeros(cls, size: int, classes: int | None, device: Any) -> Moments:
        """Empty histories."""
        shape = (size,) if classes is None else (size, classes)
        mean = torch.zeros(shape, dtype=torch.float64, device=device)
        return cls(torch.zeros(size, dtype=torch.int64, device=device), mean, torch.zeros_like(mean))

    def rows(self, index: Tensor | None) -> Moments:
        """Those of some samples, or all."""
        return self if index is None else Moments(self.count[index], self.mean[index], self.squares[index])

    def put(self, index: Tensor, rows: Moments) -> None:
        """Overwrites those of some samples, each named once."""
        self.count[index], self.mean[index], self.squares[index] = rows.count, rows.mean, rows.squares

    def plus(self, other: Moments) -> Moments:
        """Chan, Golub and LeVeque (1979): the moments of both together, without cancellation."""
        count = self.count + other.count
        wide = (...,) + (None,) * (self.mean.dim() - 1)
        share = other.count.double()[wide] / count.clamp(min=1)[wide]
        step = other.mean - self.mean
        between = step * step * (self.count[wide] * share)
        return Moments(count, self.mean + step * share, self.squares + other.squares + between)

    def to(self, device: Any) -> Moments:
        """The same on another device."""
        return Moments(self.count.to(device), self.mean.to(device), self.squares.to(device))

    def copy(self) -> Moments:
        """The same in memory of its own."""
        return Moments(self.count.clone(), self.mean.clone(), self.squares.clone())


def grouped(ids: Tensor, values: Tensor) -> tuple[Tensor, Moments]:
    """The ids, each once, and the moments of their values."""
    unique, inverse = torch.unique(ids, return_inverse=True)
    shape = (len(unique), *values.shape[1:])
    count = torch.zeros(len(unique), dtype=torch.int64, device=ids.device)
    count.index_add_(0, inverse, torch.ones_like(inverse))
    mean = torch.zeros(shape, dtype=torch.float64, device=ids.device).index_add_(0, inverse, values)
    mean /= count[(...,) + (None,) * (values.dim() - 1)]
    deviations = values - mean[inverse]
    squares = torch.zeros_like(mean).index_add_(0, inverse, deviations * deviations)
    return unique, Moments(count, mean, squares)
