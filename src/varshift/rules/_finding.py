"""What a rule reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Severity = Literal["error", "warning", "advice"]
Confidence = Literal["certain", "measured", "predicted", "suspected"]
Safety = Literal["safe", "unsafe"]

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "advice")


@dataclass(frozen=True, slots=True)
class Cure:
    """Something that cures a finding.

    Attributes:
        name: What to do, in a few words.
        safety: ``"safe"`` when the weights keep their meaning (the network computes what it was trained to
            compute), ``"unsafe"`` when it has to be trained again or its outputs change on purpose.
    """

    name: str
    safety: Safety


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault of a network.

    Attributes:
        code: Rule code, ``"VS101"``.
        severity: How much it matters.
        confidence: How it is known.
        where: Module path: the noise site for VS101 to VS107, the norm for VS2xx.
        cls: Class name of that module (``"class"`` in reports).
        source: ``"file:line"`` or None.
        message: One sentence for a person.
        evidence: The numbers, strict-JSON values only.
        cures: What cures it, best first.
    """

    code: str
    severity: Severity
    confidence: Confidence
    where: str
    cls: str
    source: str | None
    message: str
    evidence: Mapping[str, Any] = field(default_factory=dict)
    cures: tuple[Cure, ...] = ()
