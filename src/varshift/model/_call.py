"""One batch as a call: split once into inputs and targets, counted once, and cut, copied and moved as one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from varshift._errors import DataError, VarshiftError
from varshift.model._failures import model_failure
from varshift.model._nest import clone, is_object, map_tensors, move
from varshift.model._reading import Reading, readings, signature_of
from varshift.model._samples import batch_size, pick_samples, sample_axis, take_samples

Forward = Callable[[nn.Module, Any], Any]
_FEW = 2  # samples to try a reading on


@dataclass(frozen=True, slots=True)
class Call:
    """One batch, ready to be run.

    Attributes:
        batch: The batch as it came; functions of the user (``forward=``, ``loss=``) see it so.
        args: Its positional inputs.
        kwargs: Its inputs by keyword.
        targets: Its targets, None without any.
        size: Number of samples.
        axis: Axis of the samples in the first input; None where nothing but a trial can tell.
        reading: How it was split; None where only the user's ``forward=`` can.
    """

    batch: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    targets: Any
    size: int
    axis: int | None
    reading: Reading | None

    @property
    def compared(self) -> Any:
        """What a loss of the user's is handed next to the outputs: the targets, or else the whole batch."""
        return self.batch if self.targets is None or is_object(self.batch) else self.targets

    def run(self, model: nn.Module, forward: Forward | None = None) -> Any:
        """Runs a model on it; an error of the model comes through as it is.

        Args:
            model: The model.
            forward: The user's function of model and batch, if any.
        """
        return model(*self.args, **self.kwargs) if forward is None else forward(model, self.batch)

    def outputs(self, model: nn.Module, forward: Forward | None = None) -> Any:
        """Runs a model on it as `run` does.

        Raises:
            ModelError: If the model or the user's function fails, from its own error.
        """
        try:
            return self.run(model, forward)
        except Exception as error:
            inputs = self.batch if forward is not None else (self.args, self.kwargs)
            raise model_failure(error, model, inputs, by_user=forward is not None) from error

    def copy(self) -> Call:
        """The same call on tensors, containers and objects of its own, which may be overwritten."""
        return self.with_batch(clone(self.batch))

    def to(self, device: torch.device | str | None) -> Call:
        """The same call on a device."""
        return self.with_batch(move(self.batch, device))

    def map(self, function: Callable[[Tensor], Tensor]) -> Call:
        """The same call with a function applied to every tensor of the batch."""
        return self.with_batch(map_tensors(self.batch, function))

    def take(self, count: int) -> Call | None:
        """The first samples, None where it is not known how to cut the batch."""
        if self.size <= count:
            return self
        cut = take_samples(self.batch, count, size=self.size, axis=self.axis or 0)
        return None if cut is None else replace(self.with_batch(cut), size=count)

    def pick(self, rows: Sequence[int]) -> Call | None:
        """Chosen samples in a chosen order, None where it is not known how to cut the batch."""
        cut = pick_samples(self.batch, rows, size=self.size, axis=self.axis or 0)
        return None if cut is None else replace(self.with_batch(cut), size=len(rows))

    def with_batch(self, batch: Any) -> Call:
        """The same call on another batch of the same structure and size."""
        args, kwargs, targets = ((), {}, None) if self.reading is None else self.reading.split(batch)
        return replace(self, batch=batch, args=args, kwargs=kwargs, targets=targets)


class Reader:
    """Makes calls of the batches of one model; looks at its signature once.

    Args:
        model: The model.
        forward: The user's function of model and batch, if any: then a batch may have any structure.
    """

    def __init__(self, model: nn.Module, forward: Forward | None = None) -> None:
        self._signature = signature_of(model)
        self._forward = forward
        self._chosen: dict[Any, tuple[Reading, int | None]] = {}

    def readings(self, batch: Any) -> tuple[Reading | None, ...]:
        """The ways to read a batch, the likeliest first.

        Raises:
            DataError: If it cannot be read and there is no ``forward=``.
        """
        try:
            return readings(self._signature, batch)
        except DataError:
            if self._forward is None:
                raise
            return (None,)

    def choose(self, call: Call) -> None:
        """Reads all batches of this structure as one call was read."""
        if call.reading is not None:
            self._chosen[_structure(call.batch)] = call.reading, call.axis

    def read(self, batch: Any) -> Call:
        """The call of a batch, by the reading that was chosen for its structure or the likeliest one."""
        reading, axis = self._chosen.get(_structure(batch), (None, None))
        if reading is None:
            return self.read_as(self.readings(batch)[0], batch)
        return self.read_as(reading, batch, axis)

    def read_running(self, network: nn.Module, batch: Any) -> Call:
        """The call of a batch by the first reading that runs in both modes, the likeliest one if none does.

        Args:
            network: Runs on a few samples where there are several readings, so it must not be the user's own.
            batch: The batch.
        """
        calls = [self.read_as(reading, batch) for reading in self.readings(batch)]
        if len(calls) == 1:
            return calls[0]
        call = next((call for call in calls if self._runs(network, call)), calls[0])
        self.choose(call)
        return call

    def _runs(self, network: nn.Module, call: Call) -> bool:
        for few in (call.take(_FEW) or call, call):  # a model may insist on its batch size
            try:
                with torch.no_grad():
                    for training in (True, False):
                        few.copy().outputs(network.train(training), self._forward)
            except VarshiftError:
                continue
            return True
        return False

    def read_as(self, reading: Reading | None, batch: Any, axis: int | None = None) -> Call:
        """The call of a batch by one reading.

        Args:
            reading: How to split it, None to leave that to ``forward=``.
            batch: The batch.
            axis: Axis of the samples, where a trial told it.
        """
        args, kwargs, targets = ((), {}, None) if reading is None else reading.split(batch)
        if axis is None:
            axis = sample_axis((*args, *kwargs.values()) if reading is not None else batch, targets)
        return Call(batch, args, kwargs, targets, batch_size(batch, targets, axis or 0), axis, reading)


def read_call(model: nn.Module, batch: Any, forward: Forward | None = None) -> Call:
    """The call of one batch by its likeliest reading; a call comes back as it is.

    Raises:
        DataError: If it cannot be read and there is no ``forward=``.
    """
    return batch if isinstance(batch, Call) else Reader(model, forward).read(batch)


def _structure(batch: Any) -> Any:
    if isinstance(batch, Mapping):
        return type(batch), tuple(batch)
    return type(batch), len(batch) if isinstance(batch, (tuple, list)) else None
