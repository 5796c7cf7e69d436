"""How far what a norm sees in evaluation is from the statistics that it holds, in numbers and in words."""

from __future__ import annotations

import math
from collections.abc import Iterable

from varshift.evidence import Evidence
from varshift.theory import fold

from . import _thresholds as thresholds
from ._finding import Severity
from ._reading import known, positive


def deviation(evidence: Evidence, name: str) -> tuple[float | None, float | None]:
    """What a norm sees in evaluation: its variance over that which it holds, and how far the mean is off."""
    layer = evidence.measured.get(name)
    if layer is None or not layer.reached:
        return None, None
    return positive(layer.ratio), known(layer.mean_offset)


def ratio_severity(ratio: float | None, offset: float | None) -> Severity | None:
    """The severity of a ratio of variances and of an offset in standard deviations, by themselves."""
    shift, offset = fold(ratio or 1.0), offset or 0.0
    if shift >= thresholds.SHIFT_ERROR or offset >= thresholds.OFFSET_ERROR:
        return "error"
    if shift >= thresholds.SHIFT_WARNING or offset >= thresholds.OFFSET_WARNING:
        return "warning"
    return None


def size_of(ratio: float | None, offset: float | None) -> float:
    """One number to compare norms by: the graver of both in units of the warning."""
    shift = math.log(fold(ratio or 1.0)) / math.log(thresholds.SHIFT_WARNING)
    return max(shift, (offset or 0.0) / thresholds.OFFSET_WARNING)


def worst_first(evidence: Evidence, names: Iterable[str]) -> list[str]:
    """Norms by how far they are off in evaluation; those that are alike keep their order."""
    return sorted(names, key=lambda name: size_of(*deviation(evidence, name)), reverse=True)


def deviation_words(ratio: float | None, offset: float | None, of: str = "that it holds") -> str:
    """What is wrong, the graver number first: ``"a mean 0.46 standard deviations off"``.

    A figure below its warning is left out, unless both are: then the graver one is named. Empty where neither
    is known.

    Args:
        ratio: A variance over the expected one.
        offset: Offset of a mean in standard deviations.
        of: Whose variance the expected one is.
    """
    parts: list[tuple[float, str]] = []
    if ratio is not None:
        parts.append((size_of(ratio, None), f"{ratio:.3g} times the variance {of}"))
    if offset is not None:
        parts.append((size_of(None, offset), f"a mean {offset:.2g} standard deviations off"))
    parts.sort(key=lambda part: part[0], reverse=True)
    return " and ".join(text for number, (size, text) in enumerate(parts) if number == 0 or size >= 1)
