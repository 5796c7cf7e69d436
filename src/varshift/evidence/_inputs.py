"""The inputs: their moments, what inputs the statistics fit where they do not fit these, and deployment's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from varshift._errors import VarshiftError, strict
from varshift.evidence._provider import NotMade, Provider
from varshift.evidence._subject import Subject
from varshift.evidence._types import Evidence, Kind
from varshift.model import Call
from varshift.probe import Inputs, LayerMeasurement, compare_loaders, input_moments, try_maps

_BATCHES = 4  # of a trial
# Distance at the first norm from which on inputs may be others than its statistics were learned on.
_OFF = 0.25
# What the statistics step costs at least, as a share of the loss and in standard errors.
_GATE_SHARE, _GATE_ERRORS = 0.05, 2.0


class InputsProvider(Provider):
    """Compares the inputs with those that the statistics fit, where the first norm is off and that costs."""

    kind = "inputs"
    makes = "moments of the inputs, and of those that the statistics fit where the first norm is off"
    inputs = "a loader"
    cost = "no pass; where the first norm is off some runs of 64 samples and of four batches"
    needs = ("measurement",)

    def obstacle(self, subject: Subject) -> str:
        """Without a loader there are no inputs."""
        return "" if subject.loader is not None else "no data were given"

    def batches(self, subject: Subject) -> int:
        """As many as it may have."""
        return subject.max_batches

    def make(
        self, subject: Subject, evidence: Evidence, wanted: frozenset[Kind], limits: list[str]
    ) -> Mapping[str, Any]:
        """Compares; whatever fails on the way is a limit of the check."""
        calls = spread(subject.calls, _BATCHES)
        moments = input_moments(calls)
        if moments is None:
            raise NotMade("the inputs are no tensors of real numbers")
        names = _names(evidence)
        first = evidence.measured[names[0]] if names else None
        trial = None
        try:
            if first is not None and _is_off(evidence, first):
                trial = try_maps(subject.runner(), calls, first.name, names)
        except Exception as error:
            limits.append(_failed("Whether the inputs are prepared as in training", error))
        return {"inputs": Inputs(moments, trial)}


class DeploymentProvider(Provider):
    """Compares the batches of deployment with those of training."""

    kind = "deployment"
    makes = "moments of the inputs of deployment next to those of training, and of the norms' inputs"
    inputs = "a loader, and one of deployment"
    cost = "at most 16 batches"
    needs = ("inputs",)
    deploys = True

    def obstacle(self, subject: Subject) -> str:
        """Without batches of deployment there is nothing to compare."""
        return "" if subject.deploy is not None else "no deployment data were given"

    def make(
        self, subject: Subject, evidence: Evidence, wanted: frozenset[Kind], limits: list[str]
    ) -> Mapping[str, Any]:
        """Compares; whatever fails on the way is a limit of the check."""
        calls, deployed = (spread(several, _BATCHES) for several in (subject.calls, subject.deploy_calls))
        try:
            trial = compare_loaders(subject.runner(), calls, deployed, _names(evidence))
        except Exception as error:
            limits.append(_failed("Whether the loaders prepare the data alike", error))
            trial = None
        if trial is None:
            raise NotMade("the inputs of the loaders could not be compared")
        return {"deployment": trial}


def _failed(what: str, error: Exception) -> str:
    """The limit for a comparison that failed; an error of our own is raised where faults must not hide."""
    if strict() and not isinstance(error, VarshiftError):
        raise error
    return f"{what} is unknown: the comparison failed ({type(error).__name__})."


def spread(calls: Sequence[Call], count: int) -> list[Call]:
    """Some of the batches, spread evenly over all of them."""
    if len(calls) <= count:
        return list(calls)
    return [calls[round(number * (len(calls) - 1) / (count - 1))] for number in range(count)]


def _names(evidence: Evidence) -> list[str]:
    """Names of the norms that data reached, in order of execution where it was captured."""
    flow = evidence.eval or evidence.train
    executed = [site.name for site in flow.norms] if flow else []
    names = dict.fromkeys((*executed, *evidence.measured))
    return [name for name in names if (layer := evidence.measured.get(name)) is not None and layer.reached]


def _is_off(evidence: Evidence, layer: LayerMeasurement) -> bool:
    """Whether the first norm gets something else than its statistics say, and the statistics step costs."""
    offset, ratio = layer.mean_offset or 0.0, layer.channel_log_ratio_rms or 0.0
    if math.hypot(offset, ratio / 2) < _OFF:
        return False
    gap = evidence.measurement.gap if evidence.measurement else None
    step = next((step for step in gap.steps if step.cause == "statistics"), None) if gap else None
    if gap is None or step is None:
        return True
    if step.delta is None:  # not finite
        return False
    levels = [abs(value) for value in gap.states.values() if value is not None]
    error = _GATE_ERRORS * (step.stderr if step.stderr is not None else 0.0)
    return step.delta > max(_GATE_SHARE * min(levels, default=0.0), error)
