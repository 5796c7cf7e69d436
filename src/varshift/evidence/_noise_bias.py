"""Whether the mean of the outputs over the noise is what the network computes without it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from varshift._errors import VarshiftError, strict
from varshift.evidence._provider import NotMade, Provider
from varshift.evidence._subject import Subject
from varshift.evidence._types import Evidence, Kind
from varshift.flow import recognise_norms
from varshift.model import short_message_of
from varshift.probe import Incomparable, measure_noise_bias


class NoiseBiasProvider(Provider):
    """Runs a few samples several times with noise and once without, all norms on their running statistics."""

    kind = "noise_bias"
    makes = "how far the mean of the outputs over the noise is from the output without noise"
    inputs = "a loader"
    cost = "at most 64 samples, three times or, where that shows something, 17 times"
    needs = ("capture",)

    def obstacle(self, subject: Subject) -> str:
        """Without data there are no outputs to compare."""
        return "" if subject.loader is not None else "no data were given"

    def batches(self, subject: Subject) -> int:
        """Its error is the spread over batches."""
        return min(8, subject.max_batches)

    def make(
        self, subject: Subject, evidence: Evidence, wanted: frozenset[Kind], limits: list[str]
    ) -> Mapping[str, Any]:
        """Measures; what goes wrong in it is a limit of the check and never its end."""
        flow = evidence.train
        if flow is None:
            raise NotMade("the network could not be captured in train mode")
        if all(site.rate == 0 for site in flow.noises):
            raise NotMade("no noise acts in training")
        recognised = subject.recognised or recognise_norms(
            subject.network, subject.batches[0], subject.forward
        )
        try:
            found = measure_noise_bias(
                subject.shadow,
                subject.calls,
                flow,
                recognised,
                forward=subject.forward,
                loss=subject.loss,
                gains=_gains(evidence),
                seed=subject.seed,
            )
        except Incomparable as answer:
            raise NotMade(str(answer)) from answer
        except VarshiftError as error:  # the model's own: it need not run on a few samples
            limits.append(f"Whether noise biases the outputs is not known: {short_message_of(error)}.")
            raise NotMade("the model fails on a few samples") from error
        except Exception as error:
            if strict():
                raise
            limits.append(f"Whether noise biases the outputs is not known: {short_message_of(error)}.")
            raise NotMade("it failed") from error
        return {"noise_bias": found}


def _gains(evidence: Evidence) -> bool:
    """Whether the loss was measured to fall where the noise is off."""
    gap = evidence.measurement.gap if evidence.measurement else None
    step = next((one for one in gap.steps if one.cause == "noise"), None) if gap else None
    return gap is not None and gap.metric == "loss" and step is not None and (step.delta or 0.0) < 0
