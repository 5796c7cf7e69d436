"""Numbers as text, with as many digits as their spread leaves meaning in."""

from __future__ import annotations

import math

from varshift_lab.render._values import Spread


def mean_text(values: Spread) -> str:
    """The mean, to the place of the second digit of the standard deviation, or to four digits without one."""
    if not values.count:
        return ""
    return f"{values.mean:.{_places(values)}f}"


def deviation_text(values: Spread) -> str:
    """The standard deviation to the same place; empty of fewer than two values."""
    if values.count < 2:
        return ""
    return f"{values.deviation:.{_places(values)}f}"


def short(value: float | None, digits: int = 3) -> str:
    """A number to so many digits, without a power of ten where it can be avoided."""
    if value is None or math.isnan(value):
        return ""
    if value == 0:
        return "0"
    places = digits - 1 - math.floor(math.log10(abs(value)))
    if places > 8:
        return f"{value:.{digits - 1}e}"
    return f"{value:.{min(max(places, 0), 8)}f}"


def plain(value: float | None) -> str:
    """A number with all its digits, as a program would read it; empty for none."""
    return "" if value is None or math.isnan(value) else repr(float(value))


def _places(values: Spread) -> int:
    size = values.deviation
    if not size > 1e-9 * abs(values.mean):  # none, or nothing but rounding
        size = abs(values.mean) / 100
    if not size:
        return 2
    # Rounded first: 0.0099999 is shown as 0.010, whose first digit stands one place higher.
    return min(max(1 - math.floor(math.log10(float(f"{size:.1e}"))), 0), 8)
