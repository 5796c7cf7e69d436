"""Contests of the analytic norms: the norm alone, and with the moments propagated through a convolution."""

from __future__ import annotations

import torch
from torch import nn

from _contest import Contest
from varshift import nn as parts
from varshift.functional import KalmanState

_SHAPE = (32, 64, 56, 56)


class _Norm(nn.Module):
    """The norm with moments at hand."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = parts.AnalyticNorm2d(64)
        self.register_buffer("mean", torch.zeros(64))
        self.register_buffer("var", torch.ones(64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x, KalmanState(self.mean, self.var))[0]


def _layers(norm: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(64, 64, 3, padding=1, bias=False), norm, nn.ReLU())


LAYERS: list[Contest] = [
    Contest("AnalyticNorm2d", "nn.BatchNorm2d", _Norm, lambda: nn.BatchNorm2d(64), _SHAPE),
    Contest(
        "Conv2d, AnalyticNorm2d, ReLU",
        "with nn.BatchNorm2d",
        lambda: parts.AnalyticNetwork(_layers(parts.AnalyticNorm2d(64)), torch.zeros(64), torch.ones(64)),
        lambda: _layers(nn.BatchNorm2d(64)),
        _SHAPE,
    ),
]
