"""The captured network: its flows in train and in eval mode."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from varshift.evidence._provider import Provider
from varshift.evidence._subject import Subject
from varshift.evidence._types import Evidence, Kind
from varshift.flow import capture_in_place, difference_of, recognised_norms
from varshift.model import find_norms, norm_limit
from varshift.moments import samples_for_prediction

_SAMPLES = 2


class CaptureProvider(Provider):
    """Captures the network on a few samples, once in train and once in eval mode."""

    kind = "capture"
    makes = "the network's operations in train and in eval mode, with its noise and norms"
    inputs = "a loader, an example input or a shape"
    cost = "one pass of a few samples per mode"

    def obstacle(self, subject: Subject) -> str:
        """Without inputs nothing can be run."""
        return "" if subject.has_inputs else "no inputs were given"

    def limit(self) -> str:
        """What is not seen without it."""
        return (
            "No inputs were given: the network was not captured, so noise could not be traced to norms, and "
            "norms written by hand could not be recognised unless they have the buffers of torch's norms."
        )

    def batches(self, subject: Subject) -> int:
        """The first batch is enough."""
        return 1

    def make(
        self, subject: Subject, evidence: Evidence, wanted: frozenset[Kind], limits: list[str]
    ) -> Mapping[str, Any]:
        """Captures the network; a mode in which it cannot be captured is None and named in the limits."""
        subject.settle(limits, measures="measurement" in wanted)
        example = subject.example()
        subject.announce("capturing the network")
        predicts = "prediction" in wanted and subject.learned
        samples = samples_for_prediction(example) if predicts else _SAMPLES
        captured = capture_in_place(subject.shadow.network, example, forward=subject.forward, samples=samples)
        subject.captured, subject.captured_example, subject.captured_samples = captured, example, samples
        subject.recognised = recognised_norms(subject.network, captured)
        subject.norms = find_norms(subject.network, subject.recognised)
        limits.extend(captured.limits)
        limits.extend(norm_limit(norm) for norm in subject.norms if norm.states.unsupported is not None)
        train, evaluation = captured.train, captured.eval
        difference = (
            difference_of(train, evaluation) if train is not None and evaluation is not None else None
        )
        return {"train": train, "eval": evaluation, "difference": difference}
