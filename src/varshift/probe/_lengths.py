"""Batches of samples of different lengths: where their padding is, and the same samples with more of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from varshift.model import Call, tensors

_INTEGERS = (torch.uint8, torch.int16, torch.int32, torch.int64)


@dataclass(frozen=True, slots=True)
class Lengths:
    """Where the samples of a batch end.

    Attributes:
        size: Number of steps of the batch.
        own: Number of steps of each sample.
        places: The dimension of the steps, by the number of each tensor of the batch that has it.
        declared: Whether lengths or a mask among the inputs say so; else it follows from batches of different
            lengths with values of one kind at their ends.
    """

    size: int
    own: tuple[int, ...]
    places: Mapping[int, int]
    declared: bool


def lengths_of(calls: Sequence[Call]) -> Lengths | None:
    """Where the samples of the first of some batches end; None where all are as long as can be told."""
    call = calls[0]
    if call.axis not in (0, None) or call.size < 2:
        return None
    held = list(tensors(call.batch))
    for place, tensor in enumerate(held):
        if tensor.is_nested or tensor.layout is not torch.strided or tensor.shape[:1] != (call.size,):
            continue
        for axis in range(1, tensor.dim()):
            found = _along(calls, held, place, axis)
            if found is not None:
                return found
    return None


def with_length(call: Call, lengths: Lengths, length: int) -> Call | None:
    """The same samples cut or padded to a length; None where what to pad with is not known."""
    positions = iter(range(10**9))
    failed = False

    def changed(tensor: Tensor) -> Tensor:
        nonlocal failed
        axis, size = lengths.places.get(next(positions)), lengths.size
        if axis is None:
            return tensor
        if length <= size:
            return tensor.narrow(axis, 0, length)
        last = tensor.narrow(axis, size - 1, 1)
        value = last.flatten()[0]
        if not bool((last == value).all()):
            failed = True  # some sample fills it to the end: its last step is no padding
            return tensor
        shape = list(tensor.shape)
        shape[axis] = length - size
        return torch.cat([tensor, value.expand(shape).to(tensor)], axis)

    changed_call = call.map(changed)
    return None if failed else replace(changed_call, size=call.size)


def _along(calls: Sequence[Call], held: list[Tensor], place: int, axis: int) -> Lengths | None:
    """Whether the samples of a tensor end before its end along a dimension."""
    tensor = held[place]
    size = tensor.shape[axis]
    if size < 2:
        return None
    own = _ends(tensor, axis)
    if own is None or min(own) >= size:
        return None
    varies = len({shape[axis] for shape in _shapes(calls, place) if len(shape) > axis}) > 1
    declared = _declared(held, place, axis, own)
    if not declared and not (varies and max(own) == size):
        return None
    if declared:
        own = declared
    places = {place: axis}
    for number, other in enumerate(held):
        if number == place or other.is_nested or other.shape[:1] != (len(own),):
            continue
        axes = [dim for dim in range(1, other.dim()) if other.shape[dim] == size]
        if axes:
            places[number] = axis if axis in axes else axes[0]
    return Lengths(size, tuple(own), places, bool(declared))


def _shapes(calls: Sequence[Call], place: int) -> list[Any]:
    shapes = []
    for call in calls:
        held = list(tensors(call.batch))
        if place < len(held):
            shapes.append(tuple(held[place].shape))
    return shapes


def _ends(tensor: Tensor, axis: int) -> list[int] | None:
    """Of each sample the number of steps before one value that fills the rest; None for other tensors."""
    if tensor.is_complex() or tensor.numel() == 0:
        return None
    steps = tensor.movedim(axis, 1).flatten(2) if tensor.dim() > 2 else tensor.movedim(axis, 1)[..., None]
    filling = steps[:, -1:, :1]
    same = (steps == filling).all(2)
    length = same.shape[1]
    # The number of steps at the end that hold the filling: counted from the end up to the first other one.
    trailing = same.flip(1).long().cumprod(1).sum(1)
    own = [end or length for end in (length - trailing).tolist()]  # one value all along is no filling
    shortest = int(torch.tensor(own).argmin())
    value = filling[shortest].item()
    # One value fills the ends of all samples that end early.
    short = [row for row, end in enumerate(own) if end < length and filling[row].item() == value]
    return [end if row in short else length for row, end in enumerate(own)]


def _declared(held: list[Tensor], place: int, axis: int, ends: list[int]) -> list[int] | None:
    """The lengths of the samples where another tensor gives them, as numbers or as a mask."""
    size = held[place].shape[axis]
    for number, other in enumerate(held):
        if number == place or other.is_nested or other.shape[:1] != (len(ends),):
            continue
        if other.dtype in _INTEGERS and other.numel() == len(ends):
            given = [int(value) for value in other.flatten()]
        elif other.dim() == 2 and other.shape[1] == size and _is_mask(other):
            given = _ends(other, 1) or []
        else:
            continue
        # What follows the end of each sample is filling, and some sample ends early.
        fits = given and min(given) >= 1 and max(given) <= size and min(given) < size
        if fits and all(end <= length for end, length in zip(ends, given, strict=True)):
            return given
    return None


def _is_mask(tensor: Tensor) -> bool:
    return tensor.dtype == torch.bool or bool(((tensor == 0) | (tensor == 1)).all())
