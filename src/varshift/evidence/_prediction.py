"""The prediction: what weights and statistics alone say about the norms, without data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from varshift.evidence._provider import NotMade, Provider
from varshift.evidence._subject import Subject
from varshift.evidence._types import Evidence, Kind
from varshift.model import origins
from varshift.moments import predict_captured

_UNKNOWN_ORIGIN = (
    "Statistics without the mark of varshift.recalibrate are taken for those of training with its noise. If "
    "something else re-estimated them without noise, the shift predicted here is not there: data would tell."
)


class PredictionProvider(Provider):
    """Predicts what every norm that has learned its statistics will see."""

    kind = "prediction"
    unknown = "What the norms will see, without data,"
    makes = "the variance shift that weights and statistics alone predict at every norm"
    inputs = "as for the capture, and norms that have learned their statistics"
    cost = "three passes of made-up samples through the captured operations"
    needs = ("capture",)

    def obstacle(self, subject: Subject) -> str:
        """Statistics of a new norm say nothing about what it will see."""
        return "" if subject.learned else "no norm has learned its statistics"

    def make(
        self, subject: Subject, evidence: Evidence, wanted: frozenset[Kind], limits: list[str]
    ) -> Mapping[str, Any]:
        """Predicts."""
        captured, example = subject.captured, subject.captured_example
        if captured is None or example is None or evidence.train is None or evidence.eval is None:
            raise NotMade("the network could not be captured in both modes")
        subject.announce("predicting what its norms see")
        prediction = predict_captured(
            subject.network, captured, example, subject.captured_samples, subject.seed
        )
        if prediction is None:
            raise NotMade("noise reaches no norm that has learned its statistics")
        limits.extend(limit for limit in prediction.limits if limit not in limits)  # it has the capture's too
        known = origins(subject.norms)
        if subject.loader is None and any(
            layer.noise and layer.name not in known for layer in prediction.layers
        ):
            limits.append(_UNKNOWN_ORIGIN)
        return {"prediction": prediction}
