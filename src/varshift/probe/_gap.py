"""Splits the gap between training and deployment by counterfactual states on the same batches."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from varshift.probe._loss import mean_kl, relative_l2
from varshift.probe._types import Gap, GapStep

_ORDER = ("train", "clean", "recalibrated", "recalibrated_noisy", "eval")
_Cause = Literal["noise", "small-batch", "variance-shift", "statistics"]
_CAUSES: tuple[_Cause, ...] = ("noise", "small-batch", "variance-shift", "statistics")


@dataclass(frozen=True, slots=True)
class StateLosses:
    """What one state brought back, per batch.

    Attributes:
        losses: Mean loss per batch, None where there is nothing to compare with.
        correct: Right answers and answers per batch, None where targets are not class indices.
        outputs: Outputs per batch where there are no targets; None when they were too large to keep.
    """

    losses: Sequence[float | None]
    correct: Sequence[tuple[int, int] | None]
    outputs: Sequence[Tensor] | None


def build_gap(states: Mapping[str, StateLosses], sizes: Sequence[int]) -> Gap | None:
    """Builds the gap from all five states, None when neither losses nor outputs can be compared.

    Args:
        states: The states ``train``, ``clean``, ``recalibrated``, ``recalibrated_noisy`` and ``eval``.
        sizes: Number of samples of each batch, its weight.
    """
    if all(_complete(states[name].losses, sizes) for name in _ORDER):
        losses = {name: [float(value or 0.0) for value in states[name].losses] for name in _ORDER}
        return _gap("loss", losses, sizes, accuracy=_accuracy(states))
    kept = {name: states[name].outputs for name in _ORDER}
    reference = kept["recalibrated"]
    if reference is None or any(not _fits(kept[name], reference, sizes) for name in _ORDER):
        return None
    distances = {
        name: [relative_l2(a, b) for a, b in zip(kept[name] or (), reference, strict=True)] for name in _ORDER
    }
    kl: dict[str, float] = {}
    for name in _ORDER:
        values = [mean_kl(a, b) for a, b in zip(kept[name] or (), reference, strict=True)]
        numbers = [value for value in values if value is not None]
        if len(numbers) == len(sizes):
            kl[name] = _mean(numbers, sizes)
    return _gap("relative_l2", distances, sizes, kl=kl if len(kl) == len(_ORDER) else None)


def _complete(values: Sequence[float | None], sizes: Sequence[int]) -> bool:
    return len(values) == len(sizes) > 0 and all(value is not None for value in values)


def _fits(outputs: Sequence[Tensor] | None, reference: Sequence[Tensor], sizes: Sequence[int]) -> bool:
    if outputs is None or len(outputs) != len(sizes) or not sizes:
        return False
    return all(a.shape == b.shape and a.is_floating_point() for a, b in zip(outputs, reference, strict=True))


def _gap(
    metric: str,
    values: Mapping[str, Sequence[float]],
    sizes: Sequence[int],
    *,
    accuracy: Mapping[str, float] | None = None,
    kl: Mapping[str, float] | None = None,
) -> Gap:
    means = {name: _finite(_mean(values[name], sizes)) for name in _ORDER}
    steps = []
    for cause, before, after in zip(_CAUSES, _ORDER, _ORDER[1:], strict=False):
        first, second = means[before], means[after]
        changes = [b - a for a, b in zip(values[before], values[after], strict=True)]
        delta = None if first is None or second is None else second - first
        steps.append(GapStep(cause, delta, None if delta is None else _stderr(changes, sizes)))
    return Gap(metric, means, tuple(steps), accuracy, kl)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _accuracy(states: Mapping[str, StateLosses]) -> dict[str, float] | None:
    found: dict[str, float] = {}
    for name in _ORDER:
        counts = [pair for pair in states[name].correct if pair is not None]
        total = sum(count for _, count in counts)
        if len(counts) != len(states[name].correct) or total == 0:
            return None
        found[name] = sum(right for right, _ in counts) / total
    return found


def _mean(values: Sequence[float], sizes: Sequence[int]) -> float:
    return sum(value * size for value, size in zip(values, sizes, strict=True)) / sum(sizes)


def _stderr(values: Sequence[float], sizes: Sequence[int]) -> float | None:
    """Standard error of a weighted mean over batches, None for a single batch."""
    count, total = len(values), sum(sizes)
    if count < 2:
        return None
    mean = _mean(values, sizes)
    squares = sum((size / total * (value - mean)) ** 2 for value, size in zip(values, sizes, strict=True))
    return math.sqrt(squares * count / (count - 1))
