"""The moments of every call of a norm, where calls, configurations or batches may differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from varshift.evidence._provider import NotMade, Provider
from varshift.evidence._subject import Subject
from varshift.evidence._types import Evidence, Kind
from varshift.model import require_values
from varshift.probe import hear_norm_calls

_BATCHES = 12
_APART = 3.0  # a batch that is worth this many times less than its samples may be of one kind among several


class NormCallsProvider(Provider):
    """Runs some batches in train mode and takes the moments of each call of each norm apart."""

    kind = "norm_calls"
    unknown = "What each call of a norm sees"
    reads = ("loader",)
    makes = "what each call of a norm sees, each configuration that chance draws, each kind of batch"
    inputs = "a loader"
    cost = "nothing where norms are called once and batches are alike, else up to 17 runs of 32 samples"
    needs = ("capture",)

    def require(self, subject: Subject) -> None:
        """Weights without values cannot be run."""
        require_values(subject.network)

    def batches(self, subject: Subject) -> int:
        """Some: kinds of batches show in several only."""
        return min(_BATCHES, subject.max_batches)

    def make(
        self, subject: Subject, evidence: Evidence, wanted: frozenset[Kind], limits: list[str]
    ) -> Mapping[str, Any]:
        """Listens."""
        if evidence.train is None or subject.recognised is None:
            raise NotMade("the network could not be captured in train mode")
        measurement = evidence.measurement
        size = measurement.samples / measurement.batches if measurement else 0.0
        worth = [layer.effective_batch for layer in measurement.layers] if measurement else []
        heard = hear_norm_calls(
            subject.shadow,
            subject.calls,
            subject.recognised,
            evidence.train,
            forward=subject.forward,
            seed=subject.seed,
            by_batch=any(value is not None and value * _APART < size for value in worth),
        )
        return {"norm_calls": heard}
