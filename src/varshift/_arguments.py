"""Checks of arguments: every failure names the argument, its value and the rule."""

from __future__ import annotations

import math
from collections.abc import Sequence


def finite(name: str, value: float) -> float:
    """Returns the value as a float, or raises ValueError when it is not a finite number."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name}={value!r} must be a number.") from None
    # compared and not asked of `math.isfinite`, so that a compiler may keep a number open
    if not -math.inf < number < math.inf:
        raise ValueError(f"{name}={value!r} must be finite.")
    return number


def positive(name: str, value: float) -> float:
    """Returns the value as a float, or raises ValueError when it is not above 0."""
    number = finite(name, value)
    if number <= 0:
        raise ValueError(f"{name}={value!r} must be above 0.")
    return number


def non_negative(name: str, value: float) -> float:
    """Returns the value as a float, or raises ValueError when it is below 0."""
    number = finite(name, value)
    if number < 0:
        raise ValueError(f"{name}={value!r} must be at least 0.")
    return number


def keep_probability(name: str, value: float) -> float:
    """Returns a keep probability as a float, or raises ValueError when it is not in (0, 1]."""
    number = finite(name, value)
    if not 0 < number <= 1:
        raise ValueError(
            f"{name}={value!r} must be a keep probability in (0, 1], that is 1 minus the drop rate."
        )
    return number


def between(name: str, value: float, low: float, high: float) -> float:
    """Returns the value as a float, or raises ValueError when it is not in [low, high]."""
    number = finite(name, value)
    if not low <= number <= high:
        raise ValueError(f"{name}={value!r} must be in [{low:g}, {high:g}].")
    return number


def count(name: str, value: int, least: int) -> int:
    """Returns the value as an int, or raises ValueError when it is not a whole number of at least `least`."""
    number = finite(name, value)
    if number != int(number) or number < least:
        raise ValueError(f"{name}={value!r} must be a whole number of at least {least}.")
    return int(number)


def vector(name: str, values: Sequence[float]) -> list[float]:
    """Returns the values as floats, or raises ValueError when there are none or one is not finite."""
    numbers = [finite(f"{name}[{index}]", value) for index, value in enumerate(values)]
    if not numbers:
        raise ValueError(f"{name} is empty: at least one value is needed.")
    return numbers


def vectors(
    name: str, values: Sequence[float], other: str, others: Sequence[float]
) -> list[tuple[float, float]]:
    """Returns two vectors as pairs, or raises ValueError when their lengths differ."""
    left, right = vector(name, values), vector(other, others)
    if len(left) != len(right):
        raise ValueError(f"{name} has {len(left)} values and {other} has {len(right)}: they must be as many.")
    return list(zip(left, right, strict=True))
