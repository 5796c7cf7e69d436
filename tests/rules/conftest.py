"""Builders of hand-made evidence: plain dataclasses with defaults that no rule objects to."""

from __future__ import annotations

import dataclasses
import itertools
import math
from types import SimpleNamespace
from typing import Any

import pytest

from varshift.evidence import LoaderFacts, ModeFacts
from varshift.flow import Flow, Node, NoiseSite, NormSite, Parting
from varshift.model import NormFacts, Source
from varshift.probe import (
    STATES,
    Change,
    Gap,
    GapStep,
    LayerMeasurement,
    Measurement,
    Repeats,
    Spread,
    Trials,
)
from varshift.rules import Evidence, run_rules

CAUSES = ("noise", "small-batch", "variance-shift", "statistics")


def node(index: int, kind: str, inputs: tuple[int, ...] = (), op: str | None = None, **values: Any) -> Node:
    values = {"shape": (8, 4, 6, 6), "source": None, **values}
    return Node(index, kind, op or kind, "", "Net", inputs=inputs, **values)


def noise(name: str = "drop", **values: Any) -> NoiseSite:
    defaults = {"cls": "Dropout", "kind": "dropout", "rate": 0.5, "source": "net.py:7", "node": 1}
    return NoiseSite(name, **{**defaults, **values})


def feeding(norm: str = "bn", path: str = "direct", **values: Any) -> NoiseSite:
    return noise(**{"reaches": (norm,), "nearest": norm, "path": path, "near": {norm: path}, **values})


def norm(name: str = "bn", **values: Any) -> NormSite:
    defaults: dict[str, Any] = {
        "cls": "BatchNorm2d",
        "kind": "batch_norm",
        "channels": 4,
        "source": "net.py:9",
        "calls": (2,),
        "shapes": ((8, 4, 6, 6),),
        "batch_statistics": True,
    }
    return NormSite(name, **{**defaults, **values})


def flow(noises: Any = (), norms: Any = (), nodes: Any = (), mode: str = "train") -> Flow:
    return Flow(mode, "recorded", tuple(nodes), tuple(noises), tuple(norms))  # type: ignore[arg-type]


def facts(name: str = "bn", **values: Any) -> NormFacts:
    defaults: dict[str, Any] = {
        "cls": "BatchNorm2d",
        "channels": 4,
        "eps": 1e-5,
        "momentum": 0.1,
        "dtype": "float32",
        "batches_tracked": 100,
        "never_moved": False,
        "nonfinite": 0,
        "negative": 0,
        "collapsed": 0,
        "largest": 1.3,
        "live": True,
        "frozen_parameters": False,
    }
    return NormFacts(name, **{**defaults, **values})


def layer(name: str = "bn", **values: Any) -> LayerMeasurement:
    defaults: dict[str, Any] = {
        "reached": True,
        "moving_var": 1.0,
        "real_var": 1.0,
        "ratio": 1.0,
        "channel_log_ratio_rms": 0.0,
        "mean_offset": 0.0,
        "local_ratio": 1.0,
        "control_ratio": 1.0,
        "fresh_ratio": 1.0,
        "train_var": 1.0,
        "stale_ratio": 1.0,
        "stale_error": 0.01,
        "stale_mean": 0.01,
        "stale_mean_error": 0.01,
        "values_per_channel": 288,
        "effective_batch": 40.0,
        "effective_batch_error": 0.1,
    }
    return LayerMeasurement(name, **{**defaults, **values})


def shifted(name: str = "bn", ratio: float = 0.5, **values: Any) -> LayerMeasurement:
    """A norm whose shift is all the noise's."""
    return layer(name, **{"ratio": ratio, "fresh_ratio": ratio, **values})


def gap(deltas: tuple[float | None, ...] = (0.0, 0.0, 0.0, 0.0), stderr: float = 0.001, **values: Any) -> Gap:
    steps = tuple(GapStep(cause, delta, stderr) for cause, delta in zip(CAUSES, deltas, strict=True))
    states = {"train": 0.5, "clean": 0.5, "recalibrated": 0.5, "recalibrated_noisy": 0.5, "eval": 0.5}
    return Gap(**{"metric": "loss", "states": states, "steps": steps, **values})


def gap_of(train: float = 1.0, batches: int = 8, spread: float = 0.01, **deltas: float) -> Gap:
    """A gap whose steps have these sizes, named with underscores; the losses of batches scatter around."""
    states = [name for name, _ in STATES if name != "deployed"]
    steps = [(cause or "").replace("-", "_") for name, cause in STATES if name in states][1:]
    means = list(itertools.accumulate((deltas.get(step, 0.0) for step in steps), initial=train))
    losses = {
        name: tuple(mean + place * spread * (-1) ** index for index in range(batches))
        for place, (name, mean) in enumerate(zip(states, means, strict=True))
    }
    gap = Gap("loss", dict(zip(states, means, strict=True)), (), batches=losses, sizes=(32,) * batches)
    built = [
        GapStep(cause, *(gap.change(before, after) or (None, None)))
        for (before, _), (after, cause) in itertools.pairwise(STATES[:-1])
        if cause is not None
    ]
    return dataclasses.replace(gap, steps=tuple(built))


def losses(
    level: float = 1.0, stderr: float = 0.001, batches: int = 16, metric: str = "loss", **values: Any
) -> Gap:
    """A gap of a classifier whose steps have exactly this standard error."""
    accuracy = values.pop("accuracy", {"eval": 0.5})
    gap = gap_of(level, batches, stderr * math.sqrt(batches - 1), **values)
    return dataclasses.replace(gap, metric=metric, accuracy=accuracy)


def measurement(*layers: LayerMeasurement, **values: Any) -> Measurement:
    return Measurement(**{"layers": layers, "gap": None, "batches": 16, "samples": 128, **values})


def parting(module: str = "mix", **values: Any) -> Parting:
    return Parting(module, **{"cls": "Mix", "op": "mean", "source": Source("net.py", 5), **values})


def change(kind: str = "mates", difference: float | None = 0.1, **values: Any) -> Change:
    return Change(kind, difference, **{"limit": 1e-3, "parting": parting(), **values})  # type: ignore[arg-type]


def spread(cost: float = 0.2, **values: Any) -> Spread:
    return Spread(**{"loss": 1.0, "cost": cost, "stderr": 0.001, "batches": 4, **values})


def trials(*changes: Change, **repeats: Any) -> Trials:
    return Trials(8, changes, Repeats(**{"random": 0.0, "drift": 0.0, **repeats}))


def loader(**values: Any) -> LoaderFacts:
    return LoaderFacts(**{"samples": 1000, "batch_size": 8, "drop_last": True, "last_batch": 8, **values})


def modes(**values: Any) -> ModeFacts:
    return ModeFacts(**{"root_training": False, **values})


def evidence(*all_facts: NormFacts, train: Flow | None = None, **values: Any) -> Evidence:
    return Evidence(**{"train": train, "eval": None, "norms": {one.name: one for one in all_facts}, **values})


def findings(code: str, known: Evidence) -> tuple[Any, ...]:
    return run_rules(known, select=[code])


@pytest.fixture
def build() -> SimpleNamespace:
    """The builders of this file by name."""
    builders = (
        node, noise, feeding, norm, flow, facts, layer, shifted,
        gap, gap_of, losses, measurement, loader, modes, evidence, findings,
        parting, change, spread, trials,
    )  # fmt: skip
    return SimpleNamespace(**{builder.__name__: builder for builder in builders})
