"""The history of a training that was watched, handed over as it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from varshift.evidence._provider import Provider
from varshift.evidence._subject import Subject
from varshift.evidence._types import Evidence, Kind


class HistoryProvider(Provider):
    """Takes what `varshift.watch` gathered."""

    kind = "history"
    reads = ("history",)
    makes = "what was seen of the training while it ran: updates, modes, frozen parts, statistics that trail"
    inputs = "a watched training (`history=`)"
    cost = "no pass"

    def make(
        self, subject: Subject, evidence: Evidence, wanted: frozenset[Kind], limits: list[str]
    ) -> Mapping[str, Any]:
        """Hands it on."""
        return {"history": subject.history}
