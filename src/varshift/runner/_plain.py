"""Measurements as plain data, checked before they are stored."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from varshift.trials import TrialError


def plain_measurements(measured: Mapping[str, Any]) -> dict[str, Any]:
    """The measurements with numbers of other libraries turned into Python's.

    Raises:
        TrialError: If there are none, or one is not finite or neither a number nor a list of numbers.
    """
    if not isinstance(measured, Mapping) or not measured:
        returned = "none" if isinstance(measured, Mapping) else f"a {type(measured).__name__}"
        raise TrialError(f"a trial must return its measurements by name; it returned {returned}.")
    return {str(name): _plain(value, str(name)) for name, value in measured.items()}


def _plain(value: Any, name: str) -> Any:
    if isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise TrialError(f"the measurement {name!r} is {value}: the training has diverged.")
        return float(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item, name) for item in value]
    if hasattr(value, "tolist"):  # arrays, tensors and their scalars
        return _plain(value.tolist(), name)
    raise TrialError(f"the measurement {name!r} is a {type(value).__name__}, not a number or a list of them.")
