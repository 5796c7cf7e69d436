"""How far a ratio is from 1, whatever the side."""

from __future__ import annotations

import math


def fold(ratio: float) -> float:
    """``max(ratio, 1 / ratio)``: a ratio and its reciprocal are equally far from 1; infinite for 0 and below.

    >>> fold(0.5), fold(2.0), fold(0.0)
    (2.0, 2.0, inf)
    """
    return max(ratio, 1 / ratio) if ratio > 0 else math.inf
