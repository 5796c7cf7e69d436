"""Splits the gap between training and deployment by counterfactual states on the same batches."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from varshift.probe._loss import mean_kl, relative_l2
from varshift.probe._types import STATES, Gap, GapStep, Step


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


def build_gap(
    states: Mapping[str, StateLosses], sizes: Sequence[int], deployed_sizes: Sequence[int] = ()
) -> Gap | None:
    """Builds the gap from the states that were run, None when neither losses nor outputs can be compared.

    Args:
        states: States by name (`STATES`). ``clean`` is left out where noise could not be switched off in
            train mode: its step is then part of ``noise``. ``deployed`` is there where its batches are.
        sizes: Number of samples of each batch, its weight.
        deployed_sizes: Likewise of the batches of deployment.
    """
    names = [name for name, _ in STATES if name in states]
    own = {name: deployed_sizes if name == "deployed" else sizes for name in names}
    if "deployed" in states and not _complete(states["deployed"].losses, deployed_sizes):
        names.remove("deployed")  # without a loss outputs on other samples cannot be compared
    if all(_complete(states[name].losses, own[name]) for name in names):
        losses = {name: [float(value or 0.0) for value in states[name].losses] for name in names}
        return _gap("loss", losses, own, accuracy=_accuracy({name: states[name] for name in names}))
    names = [name for name in names if name != "deployed"]
    kept = {name: states[name].outputs for name in names}
    reference = kept["recalibrated"]
    if reference is None or any(not _fits(kept[name], reference, sizes) for name in names):
        return None
    distances = {
        name: [relative_l2(a, b) for a, b in zip(kept[name] or (), reference, strict=True)] for name in names
    }
    kl: dict[str, float] = {}
    for name in names:
        values = [mean_kl(a, b) for a, b in zip(kept[name] or (), reference, strict=True)]
        numbers = [value for value in values if value is not None]
        if len(numbers) == len(sizes):
            kl[name] = _mean(numbers, sizes)
    return _gap("relative_l2", distances, own, kl=kl if len(kl) == len(names) else None)


def _complete(values: Sequence[float | None], sizes: Sequence[int]) -> bool:
    return len(values) == len(sizes) > 0 and all(value is not None for value in values)


def _fits(outputs: Sequence[Tensor] | None, reference: Sequence[Tensor], sizes: Sequence[int]) -> bool:
    if outputs is None or len(outputs) != len(sizes) or not sizes:
        return False
    return all(a.shape == b.shape and a.is_floating_point() for a, b in zip(outputs, reference, strict=True))


def _gap(
    metric: str,
    values: Mapping[str, Sequence[float]],
    sizes: Mapping[str, Sequence[int]],
    *,
    accuracy: Mapping[str, float] | None = None,
    kl: Mapping[str, float] | None = None,
) -> Gap:
    gap = Gap(
        metric,
        {name: _finite(_mean(losses, sizes[name])) for name, losses in values.items()},
        (),
        accuracy,
        kl,
        {name: tuple(_finite(loss) for loss in losses) for name, losses in values.items()},
        tuple(sizes["train"]),
        tuple(sizes.get("deployed", ())) if "deployed" in values else (),
    )
    return replace(gap, steps=tuple(_steps(gap)))


def _steps(gap: Gap) -> Iterator[GapStep]:
    names = list(gap.states)
    causes: dict[str, Step] = {name: cause for name, cause in STATES if cause is not None}
    for before, after in itertools.pairwise(names):
        # Without the state between them noise and function are one step.
        cause: Step = "noise" if before == "train" else causes[after]
        delta, stderr = gap.change(before, after) or (None, None)
        yield GapStep(cause, delta, stderr)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _accuracy(states: Mapping[str, StateLosses]) -> dict[str, float] | None:
    found: dict[str, float] = {}
    for name, state in states.items():
        counts = [pair for pair in state.correct if pair is not None]
        total = sum(count for _, count in counts)
        if len(counts) != len(state.correct) or total == 0:
            return None
        found[name] = sum(right for right, _ in counts) / total
    return found


def _mean(values: Sequence[float], sizes: Sequence[int]) -> float:
    return sum(value * size for value, size in zip(values, sizes, strict=True)) / sum(sizes)
