"""How many samples a batch holds, along which axis of each tensor they lie, and the first few of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from varshift.model._graphs import declared_size, is_graph, take_graphs
from varshift.model._nest import Copier, first_tensor, is_object, tensors

# Dimensions: (time, batch) for tokens; (time, batch, features) and (time, batch, channels, height, width).
_STEPS = {False: (2,), True: (3, 5)}
_FIRST_ENTRIES = 8  # entries of a container that are looked at for graphs


def batch_size(batch: Any, targets: Any = None, axis: int = 0) -> int:
    """Number of samples in a batch.

    Of graphs and other objects that know it, what they say: ``num_graphs``, the number of targets, the last
    entry of a ``batch`` index. Of a packed sequence, its sequences. A batch of lists with one entry per
    sample, as detectors take them, has the length of its lists. All others have the length of their first
    tensor along the axis of the samples.

    Args:
        batch: The batch.
        targets: Its targets, where they are known.
        axis: Axis of the samples in the first tensor: 1 where time comes first.
    """
    listed = samples_in_lists(batch)
    if listed is not None:
        return listed
    for item in _entries(batch):
        if isinstance(item, PackedSequence):
            return int(item.batch_sizes[0])
        if is_graph(item):
            return declared_size(item, targets)
    tensor = first_tensor(batch)
    if tensor is None or tensor.dim() == 0:
        return 1
    if tensor.is_nested:
        return tensor.size(0)
    length = int(tensor.shape[axis if tensor.dim() > axis else 0])
    if isinstance(targets, Tensor) and targets.dim() and len(targets) not in (0, length):
        return len(targets) if _indexed(batch, targets) else length
    return length


def sample_axis(inputs: Any, targets: Any) -> int | None:
    """Axis of the samples in the first of the inputs, as far as the targets tell; None where they do not.

    Time comes first where there is one target for every entry along the second axis and not along the first.
    """
    tensor, target = first_tensor(inputs), first_tensor(targets)
    if tensor is None or tensor.is_nested or tensor.dim() not in _STEPS[tensor.is_floating_point()]:
        return 0
    if samples_in_lists(inputs) is not None or any(map(_counts_itself, _entries(inputs))):
        return 0
    if target is None or target.dim() == 0:
        return None
    if len(target) == tensor.shape[1] != tensor.shape[0] and len(target) > 1:
        return 1
    steps = target.dim() > 1 and target.shape[:2] == tensor.shape[:2]  # a target for every step
    return None if steps or len(target) != tensor.shape[0] else 0


def samples_in_lists(batch: Any) -> int | None:
    """Number of samples where inputs, and targets if any, are lists with one entry per sample."""
    if not isinstance(batch, (tuple, list)) or not batch or not isinstance(batch[0], (tuple, list)):
        return None
    inputs, count = batch[0], len(batch[0])
    if count == 0 or hasattr(inputs, "_fields") or not all(isinstance(item, Tensor) for item in inputs):
        return None
    targets = batch[1] if len(batch) > 1 else None
    if isinstance(targets, (tuple, list)) and len(targets) == count and not isinstance(targets[0], Tensor):
        return count
    # Tensors of several inputs share the samples' dimension; images of different sizes do not share theirs.
    return count if len({item.shape for item in inputs}) > 1 and not _share_first(batch) else None


def take_samples(batch: Any, count: int, *, size: int | None = None, axis: int = 0) -> Any:
    """The first samples of a batch, None where it is not known how to cut it.

    Every tensor with as many entries as there are samples along its first axis is cut there; where time comes
    first, along its second one. Graphs are cut between graphs. A batch is not cut when some tensor of it
    holds positions in what would be cut away.

    Args:
        batch: The batch.
        count: Number of samples wanted; a batch of no more comes back as it is.
        size: Number of samples in the batch, counted when it is not given.
        axis: Axis of the samples in the first tensor.
    """
    size = batch_size(batch, axis=axis) if size is None else size
    if size <= count:
        return batch
    if samples_in_lists(batch) is not None:
        cut = [
            item[:count] if isinstance(item, (tuple, list)) and len(item) == size else item for item in batch
        ]
        return type(batch)(cut)
    try:
        return _Cutter(count, size, axis).copy(batch)
    except (_WholeError, RuntimeError, TypeError, NotImplementedError):  # or a tensor without rows
        return None


def pick_samples(batch: Any, rows: Sequence[int], *, size: int | None = None, axis: int = 0) -> Any:
    """Chosen samples of a batch in a chosen order, None where it is not known how to cut it.

    A sample may be chosen several times. Graphs are cut from the front only, see `take_samples`.

    Args:
        batch: The batch.
        rows: Numbers of the samples.
        size: Number of samples in the batch, counted when it is not given.
        axis: Axis of the samples in the first tensor.
    """
    size = batch_size(batch, axis=axis) if size is None else size
    if list(rows) == list(range(len(rows))):
        return take_samples(batch, len(rows), size=size, axis=axis)
    if samples_in_lists(batch) is not None:
        return type(batch)(
            [item[row] for row in rows] if isinstance(item, (tuple, list)) and len(item) == size else item
            for item in batch
        )
    try:
        return _Picker(rows, size, axis).copy(batch)
    except (_WholeError, RuntimeError, TypeError, NotImplementedError):
        return None


def is_whole(batch: Any) -> bool:
    """Whether something is one batch as an object, even where one can iterate over it."""
    loops = hasattr(batch, "__iter__") or hasattr(batch, "__getitem__")
    return is_graph(batch) or (is_object(batch) and not loops)


def is_joinable(batch: Any) -> bool:
    """Whether batches of this structure may be joined tensor by tensor along their first axis."""
    if isinstance(batch, PackedSequence) or is_object(batch) or any(map(_counts_itself, _entries(batch))):
        return False
    return take_samples(batch, 1) is not None


class _WholeError(Exception):
    """A batch cannot be cut."""


class _Cutter(Copier):
    """Copies a nest with the first few samples only."""

    def __init__(self, count: int, size: int, axis: int) -> None:
        super().__init__(self._cut)
        self._count, self._size, self._axis = count, size, axis

    def copy(self, value: Any) -> Any:
        if isinstance(value, PackedSequence):
            return _take_sequences(value, range(self._count))
        if is_graph(value):
            graphs = take_graphs(value, self._count, self._size)
            if graphs is None:
                raise _WholeError
            return graphs
        if is_object(value) and any(
            tensor.dim() and self._place(tensor) is None for tensor in tensors(value)
        ):
            raise _WholeError  # what its other tensors mean is the object's own affair
        return super().copy(value)

    def _place(self, tensor: Tensor) -> int | None:
        """The axis along which a tensor has one entry per sample."""
        if tensor.is_nested:
            return 0 if tensor.size(0) == self._size else None
        if self._axis == 1 and tensor.dim() > 1 and tensor.shape[1] == self._size:
            return 1
        return 0 if tensor.dim() and tensor.shape[0] == self._size else None

    def _cut(self, tensor: Tensor) -> Tensor:
        place = self._place(tensor)
        if place is None:
            if _points_into(tensor, self._size, self._count):
                raise _WholeError
            return tensor
        if tensor.is_nested:
            return torch.nested.nested_tensor(list(tensor.unbind()[: self._count]), layout=tensor.layout)
        return tensor[: self._count] if place == 0 else tensor.narrow(place, 0, self._count)


class _Picker(_Cutter):
    """Copies a nest with chosen samples only."""

    def __init__(self, rows: Sequence[int], size: int, axis: int) -> None:
        super().__init__(0, size, axis)
        self._rows = list(rows)

    def copy(self, value: Any) -> Any:
        if isinstance(value, PackedSequence):
            return _take_sequences(value, self._rows)
        if is_graph(value):
            raise _WholeError
        return super().copy(value)

    def _cut(self, tensor: Tensor) -> Tensor:
        place = self._place(tensor)
        if place is None:
            return super()._cut(tensor)
        if tensor.is_nested:
            items = tensor.unbind()
            return torch.nested.nested_tensor([items[row] for row in self._rows], layout=tensor.layout)
        return tensor.index_select(place, torch.tensor(self._rows, device=tensor.device))


def _take_sequences(packed: PackedSequence, rows: Sequence[int]) -> PackedSequence:
    padded, lengths = pad_packed_sequence(packed, batch_first=True)
    lengths = lengths[list(rows)]
    kept = padded[list(rows), : int(lengths.max())]
    # Sequences without an order of their own lie sorted by length.
    return pack_padded_sequence(kept, lengths, batch_first=True, enforce_sorted=packed.sorted_indices is None)


def _points_into(tensor: Tensor, rows: int, first: int = 0) -> bool:
    """Whether the values of a tensor are positions among rows, some of them after the first few."""
    if tensor.is_nested or tensor.dtype not in (torch.int64, torch.int32) or tensor.numel() < 2:
        return False
    if tensor.layout is not torch.strided or tensor.dim() == 0:
        return False
    low, high = (int(value) for value in torch.aminmax(tensor))
    return low >= 0 and first <= high < rows


def _indexed(batch: Any, targets: Tensor) -> bool:
    """Whether plain tensors are a graph: positions of rows, or a sorted index of groups, go with the rows."""
    rows, *others = tensors(batch)
    for other in others:
        if other is targets:
            continue
        if other.dim() == 2 and len(other) == 2 and _points_into(other, len(rows)):
            return True
        column = other.dim() == 1 and len(other) == len(rows) and _points_into(other, len(rows))
        if column and int(other[0]) == 0 and bool((other[1:] >= other[:-1]).all()):
            return True
    return False


def _counts_itself(value: Any) -> bool:
    return isinstance(value, PackedSequence) or is_graph(value)


def _entries(batch: Any) -> list[Any]:
    """A batch, or what a tuple or list of it holds at its first level."""
    if isinstance(batch, (tuple, list)) and not isinstance(batch, PackedSequence):
        return list(batch)[:_FIRST_ENTRIES]
    values = list(batch.values())[:_FIRST_ENTRIES] if isinstance(batch, Mapping) else []
    return [batch, *values]


def _share_first(batch: Any) -> bool:
    return len({tensor.shape[:1] for tensor in tensors(batch)}) == 1
