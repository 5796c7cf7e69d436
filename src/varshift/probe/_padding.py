"""The same sample with more padding, in eval mode."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from varshift._errors import VarshiftError
from varshift.model import Call
from varshift.probe._eval_runs import EvalRuns
from varshift.probe._lengths import Lengths, lengths_of, with_length
from varshift.probe._samples_apart import overlap_distance
from varshift.probe._trial_types import Change

_SUBJECTS = 6  # samples with the most padding
# A convolution reads a step or two of the padding at a sample's end, kernels choose other blockings for
# other lengths: what is no more than this is no padding in a mean.
_LIMIT = 1e-2


def change_padding(runs: EvalRuns, calls: Sequence[Call]) -> list[Change]:
    """Runs single samples at their own length and padded to that of their batch.

    Args:
        runs: Runs the network.
        calls: The batches that were drawn: their lengths tell which dimension is padded.
    """
    lengths = lengths_of(calls)
    try:
        return [] if lengths is None else _try(runs, calls[0], lengths)
    except VarshiftError:  # of the model's own: it need not run on other lengths than those of its batches
        return []


def _against(difference: float, one: Tensor, other: Tensor) -> float | None:
    """Distance of two results in units of what counts.

    Where the steps are gone, all of it has entered. Before that convolutions see the edge of the padding: a
    result with steps counts where it differs half as much as the output does.
    """
    distance = overlap_distance(one, other)
    if distance is None:
        return None
    return distance / (_LIMIT if one.shape == other.shape else max(_LIMIT, difference / 2))


def _try(runs: EvalRuns, call: Call, lengths: Lengths) -> list[Change]:
    rows = sorted(range(call.size), key=lambda row: lengths.own[row])[:_SUBJECTS]
    rows = [row for row in rows if lengths.own[row] < lengths.size]
    worst: tuple[float, Call, Call] | None = None
    losses: list[tuple[float, float]] = []
    for row in rows:
        padded = call.pick([row])
        own = None if padded is None else with_length(padded, lengths, lengths.own[row])
        if padded is None or own is None:
            return []
        results = [runs.outputs(own), runs.outputs(padded)]
        outputs = [runs.main(result) for result in results]
        if outputs[0] is None or outputs[1] is None:
            return []
        difference = overlap_distance(outputs[0], outputs[1])
        if difference is None:
            return []
        if worst is None or difference > worst[0]:
            worst = difference, own, padded
        pair = runs.loss(results[0], own), runs.loss(results[1], padded)
        if pair[0] is not None and pair[1] is not None:
            losses.append((pair[0], pair[1]))
    if worst is None:
        return []
    difference, own, padded = worst
    parting = None
    if difference > _LIMIT:
        parting = runs.parting(own, padded, partial(_against, difference), 1.0)
    means = None
    if losses and len(losses) == len(rows):
        first, second = zip(*losses, strict=True)
        means = sum(first) / len(losses), sum(second) / len(losses)
    return [Change("padding", difference, _LIMIT, parting, means, declared=lengths.declared)]
