"""The inputs: their moments, what inputs the statistics fit where they do not fit these, and deployment's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from varshift.evidence._provider import NotMade, Provider
from varshift.evidence._subject import GATE_ERRORS, GATE_SHARE, Subject, evenly
from varshift.evidence._types import Evidence, Kind
from varshift.probe import Inputs, LayerMeasurement, compare_loaders, input_moments, try_maps

_BATCHES = 4  # of a trial
# Distance at the first norm from which on inputs may be others than its statistics were learned on.
_OFF = 0.25


class InputsProvider(Provider):
    """Compares the inputs with those that the statistics fit, where the first norm is off and that costs."""

    kind = "inputs"
    reads = ("loader",)
    unknown = "Whether the inputs are prepared as in training"
    makes = "moments of the inputs, and of those that the statistics fit where the first norm is off"
    inputs = "a loader"
    cost = "no pass; where the first norm is off some runs of 64 samples and of four batches"
    needs = ("measurement",)

    def batches(self, subject: Subject) -> int:
        """As many as it may have."""
        return subject.max_batches

    def make(
        self, subject: Subject, evidence: Evidence, wanted: frozenset[Kind], limits: list[str]
    ) -> Mapping[str, Any]:
        """Compares."""
        calls = evenly(subject.calls, _BATCHES)
        moments = input_moments(calls)
        if moments is None:
            raise NotMade("the inputs are no tensors of real numbers")
        names = _names(evidence)
        first = evidence.measured[names[0]] if names else None
        trial = None
        if first is not None and _is_off(evidence, first):
            trial = try_maps(subject.runner(), calls, first.name, names)
        return {"inputs": Inputs(moments, trial)}


class DeploymentProvider(Provider):
    """Compares the batches of deployment with those of training."""

    kind = "deployment"
    reads = ("loader", "deploy")
    unknown = "Whether the loaders prepare the data alike"
    makes = "moments of the inputs of deployment next to those of training, and of the norms' inputs"
    inputs = "a loader, and one of deployment"
    cost = "at most 16 batches"
    needs = ("measurement",)
    deploys = True

    def make(
        self, subject: Subject, evidence: Evidence, wanted: frozenset[Kind], limits: list[str]
    ) -> Mapping[str, Any]:
        """Compares."""
        calls, deployed = (evenly(several, _BATCHES) for several in (subject.calls, subject.deploy_calls))
        trial = compare_loaders(subject.runner(), calls, deployed, _names(evidence))
        if trial is None:
            raise NotMade("the inputs of the loaders could not be compared")
        return {"deployment": trial}


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
    return gap is None or gap.rises("statistics", GATE_SHARE, GATE_ERRORS)
