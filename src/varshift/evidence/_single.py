"""A batch of one sample, run as training would run it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from varshift._errors import VarshiftError, strict
from varshift.evidence._provider import NotMade, Provider
from varshift.evidence._subject import Subject
from varshift.evidence._types import Evidence, Kind
from varshift.flow import recognise_norms
from varshift.probe import run_single


class SingleProvider(Provider):
    """Runs one sample alone in training mode."""

    kind = "single"
    makes = (
        "what a batch of one sample does in training mode: an error, values that are not finite, or nothing"
    )
    inputs = "a loader"
    cost = "one sample, once"

    def obstacle(self, subject: Subject) -> str:
        """Without a loader there is no sample."""
        return "" if subject.loader is not None else "no data were given"

    def batches(self, subject: Subject) -> int:
        """The first batch is enough."""
        return 1

    def make(
        self, subject: Subject, evidence: Evidence, wanted: frozenset[Kind], limits: list[str]
    ) -> Mapping[str, Any]:
        """Runs it; a sample that cannot be cut off is no fault."""
        subject.settle(limits, measures=False)
        call = subject.reader.read(subject.batches[0])
        try:
            if subject.recognised is None:
                subject.recognised = recognise_norms(subject.shadow.network, call, subject.forward)
                subject.shadow.fresh()
            single = run_single(
                subject.shadow, call, subject.recognised, forward=subject.forward, loss=subject.loss
            )
        except Exception as error:
            if strict() and not isinstance(error, VarshiftError):
                raise
            raise NotMade("a sample alone could not be run") from error
        if single is None:
            raise NotMade("a batch cannot be cut")
        return {"single": single}
