"""Contests of the Kalman norms, each inside a chain: with a state from the norm before."""

from __future__ import annotations

import torch
from torch import nn

from _contest import Contest
from varshift import nn as parts
from varshift.functional import KalmanState

_SHAPE = (32, 64, 56, 56)


class _InsideChain(nn.Module):
    """A norm with a state of a first norm and the weight of the layer between."""

    def __init__(self, norm: nn.Module, rows: int, columns: int) -> None:
        super().__init__()
        self.norm = norm
        self.register_buffer("mean", torch.zeros(rows, columns))
        self.register_buffer("var", torch.ones(rows, columns))
        self.between = nn.Conv2d(64, 64, 3, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x, KalmanState(self.mean, self.var), self.between)[0]


LAYERS: list[Contest] = [
    Contest(
        "BatchKalmanNorm2d",
        "nn.BatchNorm2d",
        lambda: _InsideChain(parts.BatchKalmanNorm2d(64), 1, 64),
        lambda: nn.BatchNorm2d(64),
        _SHAPE,
    ),
    Contest(
        "BatchKalmanNorm2d in 16 splits",
        "nn.BatchNorm2d",
        lambda: _InsideChain(parts.BatchKalmanNorm2d(64, splits=16), 16, 64),
        lambda: nn.BatchNorm2d(64),
        _SHAPE,
    ),
    Contest(
        "GroupKalmanNorm2d",
        "nn.GroupNorm",
        lambda: _InsideChain(parts.GroupKalmanNorm2d(8, 64), 32, 8),
        lambda: nn.GroupNorm(8, 64),
        _SHAPE,
    ),
]
