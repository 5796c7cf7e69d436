"""A residual block whose drop path is at the wrong place."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DropPath(nn.Module):
    """Drops a signal for whole samples."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * torch.empty(len(x), *[1] * (x.dim() - 1)).bernoulli_(0.8) / 0.8


class Skip(nn.Module):
    """A residual block with a drop path on the shortcut, or on everything."""

    def __init__(self, wrong: str) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
        self.wrong, self.drop_path = wrong, DropPath()

    def forward(self, x: Tensor) -> Tensor:
        if self.wrong == "identity":
            return self.drop_path(x) + self.body(x)
        return self.drop_path(x + self.body(x))
