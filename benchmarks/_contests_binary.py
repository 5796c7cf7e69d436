"""Contests of the parts of networks without batch norm."""

from __future__ import annotations

from torch import nn

from _contest import Contest
from varshift import nn as parts

_MAPS = (16, 64, 28, 28)

LAYERS: list[Contest] = [
    Contest(
        "ScaledStdConv2d",
        "nn.Conv2d",
        lambda: parts.ScaledStdConv2d(64, 64, 3, padding=1, gamma="relu"),
        lambda: nn.Conv2d(64, 64, 3, padding=1),
        _MAPS,
    ),
    Contest(
        "RSign, BinaryConv2d",
        "nn.Conv2d, nn.BatchNorm2d",
        lambda: nn.Sequential(parts.RSign(64), parts.BinaryConv2d(64, 64, 3, padding=1)),
        lambda: nn.Sequential(nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64)),
        _MAPS,
    ),
    Contest("RSign", "nn.PReLU", lambda: parts.RSign(64), lambda: nn.PReLU(64), _MAPS),
    Contest("RPReLU", "nn.PReLU", lambda: parts.RPReLU(64), lambda: nn.PReLU(64), _MAPS),
    Contest(
        "NormFreeBinaryBlock",
        "nn.Conv2d, nn.BatchNorm2d, nn.PReLU",
        lambda: parts.NormFreeBinaryBlock(64, 64),
        lambda: nn.Sequential(nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.PReLU(64)),
        _MAPS,
    ),
]
