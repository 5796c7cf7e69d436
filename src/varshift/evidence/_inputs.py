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
_OFF = (
    0.25  # distance at the first norm from which on inputs may be others than its statistics were learned on
)
_GATE_SHARE, _GATE_ERRORS = (
    0.05,
    2.0,
)  # of the statistics step; below these no other input has to be looked for


class InputsProvider(Provider):
    """Compares the inputs with those that the statistics fit, where the first norm is off and that costs."""

    kind = "inputs"
    makes = (
        "moments of the inputs, of those that the statistics fit where they are others, and of deployment's"
    )
    inputs = "a loader"
    cost = "no pass; where the first norm is off some of 64 samples and four batches, likewise for deployment"
    needs = ("measurement",)
    deploys = True

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
            raise NotMade("the inputs are not tensors of real numbers")
        trial = deploy = None
        try:
            names = _names(evidence)
            first = evidence.measured[names[0]] if names else None
            if first is not None and _is_off(evidence, first):
                trial = try_maps(subject.runner(), calls, first.name, names)
            if subject.deploy_batches:
                deployed = spread(subject.deploy_calls, _BATCHES)
                deploy = compare_loaders(subject.runner(), calls, deployed, names)
        except Exception as error:
            if strict() and not isinstance(error, VarshiftError):
                raise
            limits.append(
                f"Whether the inputs are prepared as in training is unknown ({type(error).__name__})."
            )
        return {"inputs": Inputs(moments, trial, deploy)}


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
