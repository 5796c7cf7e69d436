"""How bad a shift is, for colours and for choosing what to show first."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from varshift.rules import shift_of, thresholds

if TYPE_CHECKING:
    from varshift.report._page import Style
    from varshift.report._rows import LayerRow


def excess(row: LayerRow) -> float | None:
    """The shift of a norm beyond its control: ``ratio / control_ratio`` folded to at least 1.

    Without a control it is the shift itself; None when the norm was not measured.
    """
    control = row.control_ratio
    if row.ratio is not None and control is not None and math.isfinite(control) and control > 0:
        return shift_of(row.ratio / control)
    return row.shift


def style_of(value: float | None) -> Style:
    """The colour of an excess shift, by the thresholds of the rules."""
    if value is None:
        return "quiet"
    return (
        "error"
        if value >= thresholds.SHIFT_ERROR
        else "warning"
        if value >= thresholds.SHIFT_WARNING
        else "good"
    )
