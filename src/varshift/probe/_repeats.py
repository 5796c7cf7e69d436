"""Runs of one batch in eval mode once more: what is random, and what an evaluation changes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from varshift.model import Call, canonical_names, map_tensors, tensors
from varshift.probe._eval_runs import EvalRuns
from varshift.probe._samples_apart import overlap_distance
from varshift.probe._trial_types import SAME, SAMPLES, Repeats, Spread

_RUNS = 4  # of one batch with other random numbers each
_BATCHES = 4  # for the spread of the loss, and to let an evaluation write what it writes
_MANY = 64  # samples of a batch for a loss


def repeat(runs: EvalRuns, calls: Sequence[Call]) -> Repeats:
    """Repeats runs of one batch: from the same state with other random numbers, and one after another.

    Args:
        runs: Runs the network.
        calls: The batches that were drawn.
    """
    return _Repeater(runs, calls).repeats()


class _Repeater:
    def __init__(self, runs: EvalRuns, calls: Sequence[Call]) -> None:
        self._runs, self._calls = runs, calls
        self._few = calls[0].take(SAMPLES) or calls[0]

    def repeats(self) -> Repeats:
        """Tries both."""
        runs, few = self._runs, self._few
        before = _plain_values(runs.begin())
        first = runs.output(few)
        written = _written(runs, before)
        if first is None:
            return Repeats(written=written)
        again = runs.output(few, fresh=False)
        drift = _apart(first, again)
        other = runs.output(few, seed=1)
        random = _apart(first, other)
        random_at = drift_at = spread = losses = None
        if random is not None and random > SAME:
            random_at = runs.parting(few, few, overlap_distance, SAME, seeds=(0, 1))
            spread = self._spread()
        if written or (drift is not None and drift > SAME):
            drift, losses = self._drift(drift)
            if drift is not None and drift > SAME:
                drift_at = runs.parting(few, few, overlap_distance, SAME / 10, fresh=(True, False))
        return Repeats(random, random_at, spread, drift, drift_at, losses, written)

    def _drift(self, drift: float | None) -> tuple[float | None, tuple[float, float] | None]:
        """What the evaluation of some other batches changes in the outputs of the first one."""
        runs, call = self._runs, self._calls[0].take(_MANY) or self._calls[0]
        result = runs.outputs(call)
        first, before = runs.main(result), runs.loss(result, call)
        for other in self._calls[1 : 1 + 2 * _BATCHES]:
            runs.outputs(other.take(_MANY) or other, fresh=False)
        result = runs.outputs(call, fresh=False)
        after = runs.loss(result, call)
        apart = None if first is None else _apart(first, runs.main(result))
        known = [value for value in (drift, apart) if value is not None]
        losses = None if before is None or after is None else (before, after)
        return max(known, default=None), losses

    def _spread(self) -> Spread | None:
        """The loss of single runs against that of their mean output, over some batches."""
        costs: list[float] = []
        levels: list[float] = []
        for call in self._calls[:_BATCHES]:
            call = call.take(_MANY) or call
            results = [self._runs.outputs(call, seed=number) for number in range(_RUNS)]
            losses = [self._runs.loss(result, call) for result in results]
            mean = _mean(results)
            level = None if mean is None else self._runs.loss(mean, call)
            values = [loss for loss in losses if loss is not None and math.isfinite(loss)]
            if level is None or not math.isfinite(level) or len(values) < _RUNS:
                return None
            # The mean of n runs holds one n-th of the noise, and for small noise one n-th of its cost.
            costs.append((statistics.fmean(values) - level) * _RUNS / (_RUNS - 1))
            levels.append(level)
        error = statistics.stdev(costs) / math.sqrt(len(costs)) if len(costs) > 1 else None
        return Spread(statistics.fmean(levels), statistics.fmean(costs), error, len(costs))


def _apart(one: Tensor, other: Tensor | None) -> float | None:
    if other is None or one.dim() != other.dim():
        return None
    return overlap_distance(one, other) if one.shape == other.shape else math.inf


def _mean(results: Sequence[Any]) -> Any:
    """Outputs of one structure averaged tensor by tensor; None where the tensors do not match."""
    held = [list(tensors(result)) for result in results]
    shapes = {tuple((tuple(t.shape), t.dtype) for t in one) for one in held}
    if len(shapes) != 1:
        return None
    means = iter([_average(several) for several in zip(*held, strict=True)])
    return map_tensors(results[0], lambda _: next(means))


def _average(several: Sequence[Tensor]) -> Tensor:
    return torch.stack(tuple(several)).mean(0) if several[0].is_floating_point() else several[0]


def _written(runs: EvalRuns, before: dict[str, Any]) -> tuple[str, ...]:
    """Names of what the modules hold other values of than at the start: tensors, plain values, containers."""
    now = _plain_values(runs.network)
    plain = {name for name, value in now.items() if name not in before or before[name] != value}
    written = (name for name, tensor in _held_tensors(runs.network) if runs.wrote(tensor))
    return tuple(dict.fromkeys((*written, *sorted(plain))))


def _held_tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters, buffers and plain attributes, under the first name of their module."""
    for prefix, module in _named(network):
        own = (*module._parameters.items(), *module._buffers.items(), *vars(module).items())
        yield from ((prefix + key, value) for key, value in own if isinstance(value, Tensor))


def _plain_values(network: nn.Module) -> dict[str, Any]:
    """Numbers and texts that the modules hold, and the lengths of their containers."""
    values: dict[str, Any] = {}
    for prefix, module in _named(network):
        for key, value in vars(module).items():
            if key in _INTERNAL:
                continue
            if isinstance(value, (bool, int, float, str, type(None))):
                values.setdefault(prefix + key, value)
            elif isinstance(value, (list, dict, set)):
                values.setdefault(prefix + key, len(value))
    return values


def _named(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    names = canonical_names(network)
    for path, module in network.named_modules():
        name = names.get(path, path)
        yield (f"{name}." if name else ""), module


_INTERNAL = frozenset(vars(nn.Module()))
