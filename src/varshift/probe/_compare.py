"""Whether outputs in eval mode are the same twice, and whether they depend on a sample's batch mates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from varshift._errors import VarshiftError, strict
from varshift.model import Call, short_message_of
from varshift.probe._loss import relative_l2

_SAMPLES = 8  # enough for batch mates to matter, and cheap
SAME = 1e-4  # relative distance of outputs that agree up to rounding


@dataclass(frozen=True, slots=True)
class Comparison:
    """What comparing a few outputs in state ``eval`` showed.

    Attributes:
        repeat: Relative distance between two runs on the same samples; None when they could not be compared.
        mates: Relative distance between the outputs of half of the samples alone and among their batch mates.
        limits: What could not be compared, in plain sentences.
    """

    repeat: float | None = None
    mates: float | None = None
    limits: tuple[str, ...] = ()


def compare_outputs(
    call: Call, output: Callable[[Call], Tensor | None], samples: int = _SAMPLES
) -> Comparison:
    """Compares outputs; whatever goes wrong in it is a limit of the check and never its end.

    Args:
        call: One batch.
        output: Runs the network in state ``eval`` on a batch and returns the tensor to compare.
        samples: Number of samples to compare, half of them alone.
    """
    repeat: float | None = None
    try:
        few = call.take(samples)
        whole, again = output(few or call), output(few or call)
        if whole is None or again is None or whole.shape != again.shape:
            return Comparison()
        repeat = relative_l2(again, whole)
        half = None if few is None else few.take(max(1, few.size // 2))
        if few is None or half is None:
            limit = "a batch cannot be cut, since its tensors refer to one another" if few is None else ""
            return Comparison(repeat, None, _unknown(limit))
        if half.size == few.size:
            return Comparison(repeat)
        return _mates(whole, output(half), few, half, repeat)
    except VarshiftError as error:  # the model's own: it need not run on half a batch
        reason = short_message_of(error.__cause__ or error)
        return Comparison(repeat, None, _unknown(f"the model fails on a few samples ({reason})"))
    except Exception as error:
        if strict():
            raise
        return Comparison(repeat, None, _unknown(short_message_of(error)))


def _mates(whole: Tensor, part: Tensor | None, few: Call, half: Call, repeat: float) -> Comparison:
    if part is None or part.dim() != whole.dim() or whole.dim() == 0:
        return Comparison(repeat)
    axes = (1, 0) if few.axis == 1 else (0,)
    for axis in axes:
        if axis < whole.dim() and whole.shape[axis] == few.size and part.shape[axis] == half.size:
            break
    else:
        return Comparison(repeat)
    same = whole.narrow(axis, 0, half.size)
    if same.shape == part.shape:
        return Comparison(repeat, relative_l2(part, same))
    # As long as the longest sample: what one of the two has more of is padding for these samples.
    shape = [min(sizes) for sizes in zip(same.shape, part.shape, strict=True)]
    trimmed = [value[tuple(slice(size) for size in shape)] for value in (part, same)]
    difference = relative_l2(*trimmed)
    if difference <= SAME:
        return Comparison(repeat, difference)
    return Comparison(repeat, None, _unknown("the shape of the outputs depends on the batch"))


def _unknown(reason: str) -> tuple[str, ...]:
    return (f"Whether outputs depend on batch mates could not be compared: {reason}.",) if reason else ()
