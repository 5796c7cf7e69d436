"""Whether the mean of the outputs over the noise is what the network computes without it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from varshift.evidence._provider import NotMade, Provider
from varshift.evidence._subject import Subject
from varshift.evidence._types import Evidence, Kind
from varshift.probe import Incomparable, measure_noise_bias


class NoiseBiasProvider(Provider):
    """Runs a few samples several times with noise and once without, all norms on their running statistics."""

    kind = "noise_bias"
    unknown = "Whether noise biases the outputs"
    reads = ("loader",)
    makes = "how far the mean of the outputs over the noise is from the output without noise"
    inputs = "a loader"
    cost = "at most 64 samples, three times or, where that shows something, 17 times"
    needs = ("capture",)

    def batches(self, subject: Subject) -> int:
        """Its error is the spread over batches."""
        return min(8, subject.max_batches)

    def make(
        self, subject: Subject, evidence: Evidence, wanted: frozenset[Kind], limits: list[str]
    ) -> Mapping[str, Any]:
        """Measures."""
        flow = evidence.train
        if flow is None:
            raise NotMade("the network could not be captured in train mode")
        if all(site.rate == 0 for site in flow.noises):
            raise NotMade("no noise acts in training")
        try:
            found = measure_noise_bias(
                subject.shadow,
                subject.calls,
                flow,
                subject.recognise(),
                forward=subject.forward,
                loss=subject.loss,
                gains=_gains(evidence),
                seed=subject.seed,
            )
        except Incomparable as answer:
            raise NotMade(str(answer)) from answer
        return {"noise_bias": found}


def _gains(evidence: Evidence) -> bool:
    """Whether the loss was measured to fall where the noise is off."""
    gap = evidence.measurement.gap if evidence.measurement else None
    step = gap.step("noise") if gap else None
    return gap is not None and gap.metric == "loss" and step is not None and (step.delta or 0.0) < 0
