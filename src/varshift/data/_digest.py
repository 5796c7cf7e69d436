"""Digests of samples: equal for equal values, whatever the device or the width of their number type."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from varshift._batches import samples_in_lists
from varshift._errors import DataError

_SCALARS = (str, bytes, bool, int, float, complex, np.generic)


def sample_digests(batch: Any) -> list[bytes]:
    """One digest per sample of a batch, over everything in the batch that has one entry per sample.

    The batch is a tensor, an array, a list of numbers or strings (of ids, say), or a nest of these in tuples,
    lists, mappings and data classes. A list may also hold one tensor or mapping per sample, as detectors
    take them.

    Raises:
        DataError: If nothing in the batch has one entry per sample.
    """
    if _is_list_of_mappings(batch):
        columns = [[b"".join(_whole(sample)) for sample in batch]]
    else:
        columns = list(_columns(batch, samples_in_lists(batch)))
    if not columns:
        raise DataError(
            f"batch is a {type(batch).__name__} without a tensor, an array or a list of samples: "
            "pass key=, a function that takes the ids or the input tensor out of a batch."
        )
    samples = len(columns[0])
    columns = [column for column in columns if len(column) == samples]
    digests = []
    for entries in zip(*columns, strict=True):
        digest = hashlib.blake2b(digest_size=16)
        for entry in entries:
            digest.update(len(entry).to_bytes(8, "little"))
            digest.update(entry)
        digests.append(digest.digest())
    return digests


def _is_list_of_mappings(batch: Any) -> bool:
    """Whether a batch is a list with one mapping per sample."""
    if not isinstance(batch, (list, tuple)) or not all(isinstance(sample, Mapping) for sample in batch):
        return False
    return len({tuple(sample) for sample in batch}) == 1


def _columns(value: Any, listed: int | None) -> Iterator[list[bytes]]:
    """What a batch holds per sample, as bytes."""
    if isinstance(value, Tensor):
        if value.is_nested:
            yield [b"".join(_rows(part[None])) for part in value.unbind()]
        elif value.dim():
            yield _rows(value)
    elif isinstance(value, np.ndarray):
        if value.ndim and value.dtype.kind in "biufc":
            yield _rows(torch.from_numpy(np.ascontiguousarray(value)))
        elif value.ndim:
            yield [_scalar(entry) for entry in value.reshape(len(value), -1).tolist()]
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _columns(item, listed)
    elif isinstance(value, (list, tuple)):
        yield from _sequence_columns(value, listed)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from _columns(getattr(value, field.name), listed)


def _sequence_columns(value: Sequence[Any], listed: int | None) -> Iterator[list[bytes]]:
    if value and all(isinstance(item, _SCALARS) for item in value):
        yield [_scalar(item) for item in value]
    elif listed is not None and len(value) == listed and not any(isinstance(v, (list, tuple)) for v in value):
        yield [b"".join(_whole(item)) for item in value]
    else:
        for item in value:
            yield from _columns(item, listed)


def _whole(value: Any) -> Iterator[bytes]:
    """All of one sample."""
    if isinstance(value, Tensor):
        yield from _rows(value[None])
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _whole(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _whole(item)
    else:
        yield _scalar(value)


def _scalar(value: Any) -> bytes:
    """A number or a string as bytes; a number gives what a tensor of it gives."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, (bool, float, complex)) or (isinstance(value, int) and -(2**63) <= value < 2**63):
        kind = torch.int64 if isinstance(value, int) else torch.float64
        kind = torch.complex128 if isinstance(value, complex) else kind
        return _rows(torch.tensor([value], dtype=kind))[0]
    if isinstance(value, bytes):
        return b"b" + value
    return b"s" + str(value).encode()


def _rows(tensor: Tensor) -> list[bytes]:
    """The rows of a tensor as bytes that depend on shape and values alone."""
    tensor = tensor.detach()
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    tensor = tensor.cpu().resolve_conj().resolve_neg()
    shape = repr(tuple(tensor.shape[1:])).encode()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
        shape += b"c"
    flat = tensor.flatten(1) if tensor.dim() > 1 else tensor[:, None]
    narrow, exact = _narrow_floats(flat) if flat.is_floating_point() else _narrow_whole(flat)
    wide = None if bool(exact.all()) else _wide(flat).numpy()
    rows = narrow.numpy()
    fits = exact.tolist()
    return [
        shape + (b"n" + rows[i].tobytes() if fits[i] or wide is None else b"w" + wide[i].tobytes())
        for i in range(len(rows))
    ]


# A row is taken in the narrowest type that holds its values exactly: the same bytes for the same values, and
# a fraction of the work of double precision for what data usually are.


def _narrow_floats(flat: Tensor) -> tuple[Tensor, Tensor]:
    narrow = _plain(flat.to(torch.float32))
    if flat.dtype is not torch.float64:
        return narrow, torch.ones(len(flat), dtype=torch.bool)
    return narrow, ((narrow.double() == flat) | flat.isnan()).all(1)


def _narrow_whole(flat: Tensor) -> tuple[Tensor, Tensor]:
    narrow = flat.to(torch.uint8)
    if flat.dtype in (torch.uint8, torch.bool):
        return narrow, torch.ones(len(flat), dtype=torch.bool)
    return narrow, (narrow.to(torch.int64) == flat.to(torch.int64)).all(1)


def _wide(flat: Tensor) -> Tensor:
    return _plain(flat.to(torch.float64)) if flat.is_floating_point() else flat.to(torch.int64)


def _plain(values: Tensor) -> Tensor:
    """One bit pattern for every value: zero has no sign and there is one NaN."""
    return torch.where(values.isnan(), torch.full_like(values, float("nan")), values + 0.0)
