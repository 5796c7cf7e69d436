"""A trial on a few samples: how batches are to be read, and whether model, targets and loss fit together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from varshift._errors import DataError, ModelError, VarshiftError
from varshift.model import Call, Forward, Guard, Reader, Shadow, describe, primary_output
from varshift.probe._loss import Loss, batch_loss, check_classes
from varshift.probe._samples_apart import sample_distance
from varshift.probe._trial_types import SAME

_FEW = 4  # samples; half of them have batch mates
_TIME_FIRST = (
    "Batches were read as (time, samples, ...): outputs depend on one another along the first axis and not "
    "along the second. If the first axis holds the samples, the network mixes them."
)


class OneModeError(ModelError):
    """A loss takes the outputs of one mode only."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What a trial brought.

    Attributes:
        error: What is wrong with the likeliest reading where no reading runs and fits, else None.
        limits: How batches were read where another reading was likely, in plain sentences.
        default_loss: Whether to take the default loss of the main output, since the user's takes the outputs
            of one mode only.
    """

    error: VarshiftError | None = None
    limits: tuple[str, ...] = ()
    default_loss: bool = False


def try_readings(
    shadow: Shadow,
    reader: Reader,
    batches: Sequence[Any],
    *,
    forward: Forward | None = None,
    loss: Loss | None = None,
    batch_size: int | None = None,
    compares: bool = True,
) -> Trial:
    """Makes a reader read batches in the first way that runs, with targets that fit; the shadow is reset.

    Nothing runs where there is nothing to find out: one reading, no targets and no loss.

    Args:
        shadow: Stands in for the network.
        reader: Reads its batches.
        batches: Batches that were drawn; the first is tried, of the others only the targets are looked at.
        forward: The user's function of model and batch, if any.
        loss: The user's function of outputs and targets, if any.
        batch_size: Batch size that the loader names, if any: it tells the axis of the samples.
        compares: Whether a loss will be taken, so that targets and loss have to fit.
    """
    calls = [reader.read_as(reading, batches[0]) for reading in reader.readings(batches[0])]
    calls = [_with_axis(reader, call, batch_size) for call in calls]
    wanted = compares and (loss is not None or calls[0].targets is not None)
    if len(calls) == 1 and calls[0].axis is not None and not wanted:
        reader.choose(calls[0])
        return Trial()
    shadow.run_eagerly(forward, loss)
    with Guard(), torch.no_grad():
        try:
            return _first(shadow, reader, calls, batches, forward, loss, compares)
        finally:
            shadow.fresh()


def _first(
    shadow: Shadow,
    reader: Reader,
    calls: Sequence[Call],
    batches: Sequence[Any],
    forward: Forward | None,
    loss: Loss | None,
    compares: bool,
) -> Trial:
    """Chooses the first call that runs and fits."""
    first: VarshiftError | None = None
    both = len(calls) > 1 or (compares and loss is not None)
    for call in calls:
        network = shadow.fresh()
        error, outputs = _error(network, call, forward, loss if compares else None, compares, both)
        if error is not None:
            first = first or error
            continue
        limits = _chosen(network, reader, call, forward)
        wrong = _classes(reader, batches[1:], outputs) if compares and loss is None else None
        return Trial(wrong, limits)
    if compares and loss is not None and isinstance(first, OneModeError):
        # The main output has a loss in both modes: better than none.
        other = _first(shadow, reader, calls, batches, forward, None, compares)
        if other.error is None and reader.read(batches[0]).targets is not None:
            text = f"{first} Until then the default loss of the main output is compared."
            return Trial(None, (*other.limits, text), default_loss=True)
    reader.choose(calls[0])
    return Trial(first)


def _with_axis(reader: Reader, call: Call, batch_size: int | None) -> Call:
    """A call whose axis of samples is that along which it has as many as the loader says, if one has."""
    if call.axis is not None or batch_size is None:
        return call
    fitting = [axis for axis in (0, 1) if reader.read_as(call.reading, call.batch, axis).size == batch_size]
    return reader.read_as(call.reading, call.batch, fitting[0]) if len(fitting) == 1 else call


def _classes(reader: Reader, batches: Sequence[Any], outputs: Any) -> VarshiftError | None:
    try:
        for batch in batches:
            check_classes(outputs, reader.read(batch).targets)
    except VarshiftError as error:
        return error
    return None


def _chosen(network: nn.Module, reader: Reader, call: Call, forward: Forward | None) -> tuple[str, ...]:
    """Makes a reader read batches as a call was read, and says how where another reading was likely."""
    words = call.reading.words if call.reading is not None else ""
    limits = (words,) if words else ()
    if call.axis is None:
        call = reader.read_as(call.reading, call.batch, _axis(network, reader, call, forward))
        limits = (*limits, _TIME_FIRST) if call.axis == 1 else limits
    reader.choose(call)
    return limits


def _error(
    network: nn.Module, call: Call, forward: Forward | None, loss: Loss | None, compares: bool, both: bool
) -> tuple[VarshiftError | None, Any]:
    """What is wrong with a call, None when it runs and its targets fit; and the outputs in eval mode.

    Args:
        network: The network.
        call: The call.
        forward: The user's function of model and batch, if any.
        loss: The user's function of outputs and targets, if any.
        compares: Whether targets and loss have to fit.
        both: Whether it has to run in train mode, too.
    """
    error: VarshiftError | None = None
    for few in _sizes(call):
        error, returned = None, {}
        for training in (False, True) if both else (False,):
            network.train(training)
            own = few.copy()
            try:
                returned[training] = outputs = own.outputs(network, forward)
                if compares and loss is None:
                    check_classes(outputs, call.targets)
                if compares:
                    batch_loss(outputs, own, loss)
            except VarshiftError as reason:
                error = error or reason
        if error is None or isinstance(error, DataError):
            return error, returned.get(False)
    return _explained(error, returned), None


def _explained(error: VarshiftError | None, returned: Mapping[bool, Any]) -> VarshiftError | None:
    """The error of a loss, and that it gets different types in the two modes, where that is so."""
    if error is None or len(returned) < 2 or type(returned[True]) is type(returned[False]):
        return error
    train, evaluation = describe(returned[True]), describe(returned[False])
    explained = OneModeError(
        f"{str(error).rstrip('.')}. The model returns {train} in train mode and {evaluation} in eval mode: "
        "let loss= take both, as in `outputs = getattr(outputs, 'logits', outputs)`."
    )
    explained.__cause__ = error.__cause__
    return explained


def _sizes(call: Call) -> Iterator[Call]:
    """A few samples, and where these do not run the whole batch."""
    few = call.take(_FEW)
    if few is not None and few is not call:
        yield few
    yield call


def _axis(network: nn.Module, reader: Reader, call: Call, forward: Forward | None) -> int:
    """Axis of the samples: the first, unless outputs depend on one another there and not along the second."""

    def output(few: Call) -> Tensor | None:
        return primary_output(few.copy().outputs(network, forward))

    network.eval()
    for axis in (0, 1):
        along = reader.read_as(call.reading, call.batch, axis)
        if along.size < 2:
            return 0
        if _are_apart(replace(along, axis=axis), output):
            return axis
    return 0


def _are_apart(call: Call, output: Callable[[Call], Tensor | None]) -> bool:
    """Whether the outputs for some samples are known not to depend on those of the others."""
    few = call.take(_FEW)
    half = few.take(max(1, few.size // 2)) if few is not None else None
    if few is None or half is None or half.size == few.size:
        return False
    try:
        whole, part = output(few), output(half)
    except VarshiftError:  # the model's own: it need not run on half a batch
        return False
    if whole is None or part is None:
        return False
    distances = (sample_distance(whole, few.size, part, half.size, (row, row)) for row in range(half.size))
    return all(distance is not None and distance <= SAME for distance in distances)
