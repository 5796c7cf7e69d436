"""What a rule reports: findings, the places that they concern, and what cures them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from varshift._sites import SiteId, Source

Severity = Literal["error", "warning", "advice"]
Confidence = Literal["certain", "measured", "predicted", "suspected"]
Safety = Literal["safe", "unsafe"]

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "advice")

_SPARSE = {"sparse": True}  # left out of a report's file where it has its default


@dataclass(frozen=True, slots=True)
class Cure:
    """Something that cures a finding, as data.

    Attributes:
        code: Stable identifier of the kind of cure, ``"recalibrate"``; `CURES` lists all of them.
        name: What to do, in a few words.
        safety: ``"safe"`` when the weights keep their meaning (the network computes what it was trained to
            compute), ``"unsafe"`` when it has to be trained again or its outputs change on purpose.
        target: The place that the cure changes, None when it concerns the network or its data as a whole.
        options: Settings of the cure, strict-JSON values only.
        measured: What the cure was measured to do, strict-JSON values only; None when it was not tried.
    """

    code: str
    name: str
    safety: Safety
    target: SiteId | None = field(default=None, metadata=_SPARSE)
    options: Mapping[str, Any] = field(default_factory=dict, metadata=_SPARSE)
    measured: Mapping[str, Any] | None = field(default=None, metadata=_SPARSE)


@dataclass(frozen=True, slots=True)
class FindingSite:
    """A place that a finding concerns.

    Attributes:
        id: Its name; ``SiteId("", "module")`` is the network as a whole.
        cls: Class name of the module that it belongs to.
        source: The line of the user's code that makes the call, None when it is not known.
    """

    id: SiteId
    cls: str = field(default="", metadata={"json": "class"})
    source: Source | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault of a network.

    Attributes:
        code: Rule code, ``"VS101"``.
        severity: How much it matters.
        confidence: How it is known.
        sites: The places that it concerns, the one that says most first: noise sites for VS101 to VS107,
            norms for VS2xx.
        message: One sentence for a person.
        evidence: The numbers, strict-JSON values only.
        cures: What cures it, best first.
        step: The step of the gap that it answers for, None where it is none.
        cost: What it costs in the metric of the gap: the change of the loss that it answers for; None where
            that was not measured.
    """

    code: str
    severity: Severity
    confidence: Confidence
    sites: tuple[FindingSite, ...]
    message: str
    evidence: Mapping[str, Any] = field(default_factory=dict)
    cures: tuple[Cure, ...] = ()
    step: str | None = field(default=None, metadata=_SPARSE)
    cost: float | None = field(default=None, metadata=_SPARSE)

    @property
    def where(self) -> str:
        """Module path of the first site, ``""`` for the network as a whole."""
        return self.sites[0].id.module if self.sites else ""

    @property
    def cls(self) -> str:
        """Class name at the first site."""
        return self.sites[0].cls if self.sites else ""

    @property
    def source(self) -> Source | None:
        """Line of code of the first site."""
        return self.sites[0].source if self.sites else None


def by_severity(findings: tuple[Finding, ...] | list[Finding]) -> tuple[Finding, ...]:
    """Findings from the gravest to the mildest, of one severity the costliest first.

    Those without a known cost follow, and keep their order.
    """

    def rank(finding: Finding) -> tuple[int, float]:
        cost = -math.inf if finding.cost is None else finding.cost
        return SEVERITIES.index(finding.severity), -cost

    return tuple(sorted(findings, key=rank))
