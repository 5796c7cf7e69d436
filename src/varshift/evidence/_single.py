"""A batch of one sample, run as training would run it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from varshift.evidence._provider import NotMade, Provider
from varshift.evidence._subject import Subject
from varshift.evidence._types import Evidence, Kind
from varshift.probe import run_single


class SingleProvider(Provider):
    """Runs one sample alone in training mode."""

    kind = "single"
    unknown = "What a batch of one sample does"
    reads = ("loader",)
    makes = (
        "what a batch of one sample does in training mode: an error, values that are not finite, or nothing"
    )
    inputs = "a loader"
    cost = "one sample, once"

    def batches(self, subject: Subject) -> int:
        """The first batch is enough."""
        return 1

    def make(
        self, subject: Subject, evidence: Evidence, wanted: frozenset[Kind], limits: list[str]
    ) -> Mapping[str, Any]:
        """Runs it."""
        subject.settle(limits, measures=False)
        call = subject.reader.read(subject.batches[0])
        recognised = subject.recognise()
        single = run_single(subject.shadow, call, recognised, forward=subject.forward, loss=subject.loss)
        if single is None:
            raise NotMade("a batch cannot be cut")
        return {"single": single}
