"""The measurement: every norm and the loss in all states, on the same batches."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

from varshift.evidence._outlier import with_outlier
from varshift.evidence._provider import Provider
from varshift.evidence._subject import Subject
from varshift.evidence._types import Evidence, Kind
from varshift.model import Norm, norm_limit, require_values
from varshift.probe import Measurement, measure_shadow

_UNSEEN = "it runs, but not on its running statistics as they are"


class MeasurementProvider(Provider):
    """Runs the network on the data with its noise and its statistics exchanged, one at a time."""

    kind = "measurement"
    reads = ("loader",)
    makes = "the shift at every norm, the gap by cause, whether outputs repeat and depend on batch mates"
    inputs = "a loader"
    deploys = True
    cost = "three to six passes over the batches, one over those of deployment, and a few of eight samples"

    def require(self, subject: Subject) -> None:
        """Weights without values cannot be run."""
        require_values(subject.network)

    def limit(self) -> str:
        """What data would add."""
        return (
            "No data were given: nothing was measured. With a loader the shift at every norm and its share "
            "of the loss gap are measured, and findings only suspected here are confirmed or dropped."
        )

    def batches(self, subject: Subject) -> int:
        """As many as it may have."""
        return subject.max_batches

    def make(
        self, subject: Subject, evidence: Evidence, wanted: frozenset[Kind], limits: list[str]
    ) -> Mapping[str, Any]:
        """Measures."""
        subject.settle(limits, measures=True)
        start = time.perf_counter()
        measurement = measure_shadow(
            subject.shadow,
            subject.calls,
            forward=subject.forward,
            loss=subject.loss,
            estimator=subject.estimator,
            seed=subject.seed,
            progress=subject.progress,
            recognised=subject.recognised,
            flow=evidence.train,
            deploy=subject.deploy_calls,
        )
        measurement = with_outlier(measurement, subject, time.perf_counter() - start)
        limits.extend(limit for limit in measurement.limits if limit not in limits)
        unmeasured = _unmeasured(subject.norms, evidence, measurement)
        names = "\n".join(limits)
        limits.extend(norm_limit(norm, _UNSEEN) for norm in unmeasured if f"'{norm.name}'" not in names)
        left_out = {norm.name for norm in unmeasured}
        layers = tuple(layer for layer in measurement.layers if layer.name not in left_out)
        return {"measurement": dataclasses.replace(measurement, layers=layers)}


def _unmeasured(norms: Sequence[Norm], evidence: Evidence, measurement: Measurement) -> list[Norm]:
    """The norms that run, by the capture, and that the measurement did not see."""
    running = {site.name for site in evidence.eval.norms} if evidence.eval else set()
    unseen = running & {layer.name for layer in measurement.layers if not layer.reached}
    return [norm for norm in norms if norm.name in unseen]
