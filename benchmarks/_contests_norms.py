"""Contests of the norms."""

from __future__ import annotations

from torch import nn

import _contests_kalman
from _contest import Contest
from varshift import nn as parts

_SHAPE = (32, 64, 56, 56)


def _timm_filter_response() -> nn.Module:
    from varshift.integrations import declare_torchvision_operators

    declare_torchvision_operators()
    from timm.layers.filter_response_norm import FilterResponseNormTlu2d

    return FilterResponseNormTlu2d(64)


LAYERS: list[Contest] = [
    Contest(
        "FilterResponseNormTLU2d",
        "BatchNorm2d, ReLU",
        lambda: parts.FilterResponseNormTLU2d(64),
        lambda: nn.Sequential(nn.BatchNorm2d(64), nn.ReLU()),
        _SHAPE,
        cpu=1.3,
        gpu=1.0,
        gpu_compiled=True,
    ),
    Contest(
        "FilterResponseNormTLU2d",
        "timm's FilterResponseNormTlu2d",
        lambda: parts.FilterResponseNormTLU2d(64),
        _timm_filter_response,
        _SHAPE,
        cpu=0.5,
    ),
    Contest(
        "FilterResponseNorm2d",
        "BatchNorm2d",
        lambda: parts.FilterResponseNorm2d(64),
        lambda: nn.BatchNorm2d(64),
        _SHAPE,
    ),
    Contest(
        "BatchRenorm2d",
        "BatchNorm2d",
        lambda: parts.BatchRenorm2d(64),
        lambda: nn.BatchNorm2d(64),
        _SHAPE,
        cpu=1.5,
    ),
    *_contests_kalman.LAYERS,
]
