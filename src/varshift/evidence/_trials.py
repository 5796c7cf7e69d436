"""The trials: a few samples in eval mode, alone, with other mates, with more padding, and once more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from varshift.evidence._provider import Provider
from varshift.evidence._subject import Subject
from varshift.evidence._types import Evidence, Kind
from varshift.model import require_values
from varshift.probe import try_samples


class TrialsProvider(Provider):
    """Runs a few samples in eval mode, each time with one thing changed."""

    kind = "trials"
    reads = ("loader",)
    makes = "whether outputs in eval mode repeat, and depend on batch mates, on padding or on being alone"
    inputs = "a loader"
    cost = "about ten runs of at most eight samples; more of 64 samples where outputs do not repeat"

    def require(self, subject: Subject) -> None:
        """Weights without values cannot be run."""
        require_values(subject.network)

    def batches(self, subject: Subject) -> int:
        """Some batches: samples of other lengths, and what an evaluation goes on to see."""
        return min(_BATCHES, subject.max_batches)

    def make(
        self, subject: Subject, evidence: Evidence, wanted: frozenset[Kind], limits: list[str]
    ) -> Mapping[str, Any]:
        """Tries."""
        subject.settle(limits, measures="measurement" in wanted)
        subject.announce("trying a few samples")
        trials = try_samples(
            subject.shadow, subject.calls, forward=subject.forward, loss=subject.loss, seed=subject.seed
        )
        limits.extend(limit for limit in trials.limits if limit not in limits)
        return {"trials": trials}


_BATCHES = 8
