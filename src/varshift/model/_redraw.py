"""Batches of the same samples in other company: samples of several batches, put together again by lot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from varshift.model._call import Call
from varshift.model._graphs import is_graph
from varshift.model._nest import Copier
from varshift.model._samples import samples_in_lists

Places = Sequence[tuple[int, int]]  # of each sample the number of its batch, and its number in that batch


def regroup(calls: Sequence[Call], places: Places) -> Call | None:
    """One batch of chosen samples of several batches, None where it is not known how to put it together.

    Tensors with one entry per sample are cut and joined; all others have to be the same in every batch.
    Batches whose samples differ in shape (padded to the longest one) and graphs cannot be put together.

    Args:
        calls: The batches, all of one structure.
        places: The samples that the new batch holds, in order.

    Example:
        >>> from torch import nn
        >>> from varshift.model import read_call
        >>> batches = [torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0], [3.0]])]
        >>> calls = [read_call(nn.Linear(1, 1), batch) for batch in batches]
        >>> regroup(calls, [(1, 0), (0, 1)]).batch.flatten().tolist()
        [2.0, 1.0]
    """
    first = calls[0]
    if samples_in_lists(first.batch) is not None:
        batch = _of_lists(calls, places)
    else:
        try:
            batch = _Joiner(calls, places).copy(first.batch)
        except (_OtherwiseError, RuntimeError, TypeError, IndexError, NotImplementedError):
            return None
    return None if batch is None else replace(first.with_batch(batch), size=len(places))


def partition(sizes: Sequence[int], generator: torch.Generator) -> list[Places]:
    """All samples of several batches, distributed at random over batches of the same sizes.

    Example:
        >>> parts = partition([2, 1], torch.Generator().manual_seed(0))
        >>> sorted(parts[0] + parts[1])
        [(0, 0), (0, 1), (1, 0)]
    """
    places = [(batch, row) for batch, size in enumerate(sizes) for row in range(size)]
    order = torch.randperm(len(places), generator=generator, device="cpu").tolist()
    return [[places[i] for i in part] for part in _cut(order, sizes)]


def _cut(items: list[int], sizes: Sequence[int]) -> list[list[int]]:
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    return [items[start : start + size] for start, size in zip(starts, sizes, strict=True)]


class _OtherwiseError(Exception):
    """Batches that are not built alike."""


class _Collector(Copier):
    """Collects the tensors of a nest in the order in which a copy meets them."""

    def __init__(self) -> None:
        self.met: list[Tensor] = []
        super().__init__(self._note)

    def copy(self, value: Any) -> Any:
        if isinstance(value, PackedSequence) or is_graph(value):
            raise _OtherwiseError
        return super().copy(value)

    def _note(self, tensor: Tensor) -> Tensor:
        self.met.append(tensor)
        return tensor


class _Joiner(Copier):
    """Copies a nest with samples of several nests of the same structure in it."""

    def __init__(self, calls: Sequence[Call], places: Places) -> None:
        super().__init__(self._join)
        self._calls, self._places, self._number = calls, places, 0
        self._met = []
        for call in calls:
            collector = _Collector()
            collector.copy(call.batch)
            self._met.append(collector.met)
        if len({len(met) for met in self._met}) > 1:
            raise _OtherwiseError

    def _join(self, tensor: Tensor) -> Tensor:
        same = [met[self._number] for met in self._met]
        self._number += 1
        axes = [_sample_axis(one, call) for one, call in zip(same, self._calls, strict=True)]
        if axes[0] is None:
            if any(not _equal(one, tensor) for one in same[1:]):
                raise _OtherwiseError
            return tensor
        if any(axis != axes[0] for axis in axes):
            raise _OtherwiseError
        rows = [same[batch].narrow(axes[0], row, 1) for batch, row in self._places]
        return torch.cat(rows, axes[0])


def _sample_axis(tensor: Tensor, call: Call) -> int | None:
    """The axis along which a tensor has one entry per sample of its batch."""
    if tensor.is_nested:
        raise _OtherwiseError
    if call.axis == 1 and tensor.dim() > 1 and tensor.shape[1] == call.size:
        return 1
    return 0 if tensor.dim() and tensor.shape[0] == call.size else None


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and bool(torch.equal(one, other))


def _of_lists(calls: Sequence[Call], places: Places) -> Any:
    """Batches that are lists with one entry per sample."""
    columns = []
    for position, column in enumerate(calls[0].batch):
        lists = [call.batch[position] for call in calls]
        if not isinstance(column, (tuple, list)) or any(
            len(one) != call.size for one, call in zip(lists, calls, strict=True)
        ):
            return None
        columns.append(type(column)(lists[batch][row] for batch, row in places))
    return type(calls[0].batch)(columns)
