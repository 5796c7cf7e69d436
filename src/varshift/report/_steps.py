"""The steps of the gap in words."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

# What each step changes.
STEP_MEANINGS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "noise": "noise switched off",
        "function": "modules in eval mode",
        "small-batch": "statistics of all the data instead of each batch",
        "variance-shift": "statistics learned with the noise on",
        "statistics": "statistics as shipped",
        "transform": "the data of deployment",
    }
)

# Why a step that makes evaluation better is nothing to explain: training has it worse on purpose.
EXPECTED_GAINS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "noise": "noise is for training only",
        "small-batch": "the statistics of one batch are noisier",
    }
)
