"""Contests of the noise."""

from __future__ import annotations

from torch import nn

from _contest import Contest
from varshift.nn import Dropout, GaussianDropout, IndependentComponent2d, UniformDropout

_MAPS = (32, 64, 48, 48)

LAYERS: list[Contest] = [
    Contest("Dropout", "nn.Dropout", lambda: Dropout(0.5), lambda: nn.Dropout(0.5), _MAPS),
    Contest(
        "UniformDropout", "nn.Dropout", lambda: UniformDropout(0.5), lambda: nn.Dropout(0.5), _MAPS, 0.5, 1.0
    ),
    Contest(
        "UniformDropout per channel",
        "nn.Dropout2d",
        lambda: UniformDropout(0.5, per_channel=True),
        lambda: nn.Dropout2d(0.5),
        _MAPS,
    ),
    Contest("GaussianDropout", "nn.Dropout", lambda: GaussianDropout(0.5), lambda: nn.Dropout(0.5), _MAPS),
    Contest(
        "IndependentComponent2d",
        "nn.BatchNorm2d, nn.Dropout",
        lambda: IndependentComponent2d(64, drop_prob=0.05),
        lambda: nn.Sequential(nn.BatchNorm2d(64), nn.Dropout(0.05)),
        _MAPS,
        0.7,
        1.05,
    ),
]
