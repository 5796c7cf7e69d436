"""What the whole suite runs of tests that take long: a part of their cases; `make battery` runs all."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

LONG = int(os.environ.get("VARSHIFT_FAULTS", "0")) > 10_000


def a_few(cases: Iterable[Any], count: int) -> list[Any]:
    """Some of the cases, spread evenly; all of them in a long run."""
    cases = list(cases)
    if LONG or len(cases) <= count:
        return cases
    return [cases[round(number * (len(cases) - 1) / max(count - 1, 1))] for number in range(count)]
