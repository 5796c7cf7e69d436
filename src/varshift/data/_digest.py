"""Digests of samples: equal for equal values, whatever the device or the width of their number type."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from varshift._errors import DataError
from varshift.model import samples_in_lists

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
        columns = [[digest(*_whole(sample)) for sample in batch]]
    else:
        columns = list(_columns(batch, samples_in_lists(batch)))
    if not columns:
        raise DataError(
            f"batch is a {type(batch).__name__} without a tensor, an array or a list of samples: "
            "pass key=, a function that takes the ids or the input tensor out of a batch."
        )
    samples = len(columns[0])
    columns = [column for column in columns if len(column) == samples]
    return [digest(*entries) for entries in zip(*columns, strict=True)]


def digest(*parts: Any) -> bytes:
    """16 bytes for a sequence of buffers, read as one."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(part)
    return whole.digest()[:16]


def _is_list_of_mappings(batch: Any) -> bool:
    """Whether a batch is a list with one mapping per sample."""
    if not isinstance(batch, (list, tuple)) or not all(isinstance(sample, Mapping) for sample in batch):
        return False
    return len({tuple(sample) for sample in batch}) == 1


def _columns(value: Any, listed: int | None) -> Iterator[list[bytes]]:
    """What a batch holds per sample, as digests."""
    if isinstance(value, Tensor):
        if value.is_nested:
            yield [_rows(part[None])[0] for part in value.unbind()]
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
        yield [digest(*_whole(item)) for item in value]
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
    """The digest of a number or a string; a number has that of a tensor of it."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, (bool, float, complex)) or (isinstance(value, int) and -(2**63) <= value < 2**63):
        kind = torch.int64 if isinstance(value, int) else torch.float64
        kind = torch.complex128 if isinstance(value, complex) else kind
        return _rows(torch.tensor([value], dtype=kind, device="cpu"))[0]
    if isinstance(value, bytes):
        return digest(b"b", value)
    return digest(b"s", str(value).encode())


def _rows(tensor: Tensor) -> list[bytes]:
    """The digests of a tensor's rows, which depend on shape and values alone."""
    tensor = tensor.detach()
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    tensor = tensor.cpu().resolve_conj().resolve_neg()
    shape = repr(tuple(tensor.shape[1:]))
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
        shape += "c"
    flat = tensor.flatten(1) if tensor.dim() > 1 else tensor[:, None]
    narrow, exact = _narrow_floats(flat) if flat.is_floating_point() else _narrow_whole(flat)
    heads = {
        fits: f"{shape}{'float' if flat.is_floating_point() else 'whole'}{fits}".encode() for fits in (0, 1)
    }
    wide = narrow if bool(exact.all()) else _wide(flat)
    rows = {1: narrow.contiguous().numpy(), 0: wide.contiguous().numpy()}
    return [digest(heads[fits], rows[fits][i]) for i, fits in enumerate(exact.int().tolist())]


# A row is taken in the narrowest type that holds its values exactly: the same bytes for the same values, and
# a fraction of the work of double precision for what data usually are.


def _narrow_floats(flat: Tensor) -> tuple[Tensor, Tensor]:
    narrow = _plain(flat, torch.float32)
    if flat.dtype is not torch.float64:
        return narrow, torch.ones(len(flat), dtype=torch.bool, device="cpu")
    return narrow, ((narrow.double() == flat) | flat.isnan()).all(1)


def _narrow_whole(flat: Tensor) -> tuple[Tensor, Tensor]:
    narrow = flat.to(torch.uint8)
    if flat.dtype in (torch.uint8, torch.bool):
        return narrow, torch.ones(len(flat), dtype=torch.bool, device="cpu")
    return narrow, (narrow.to(torch.int64) == flat.to(torch.int64)).all(1)


def _wide(flat: Tensor) -> Tensor:
    return _plain(flat, torch.float64) if flat.is_floating_point() else flat.to(torch.int64)


def _plain(values: Tensor, dtype: torch.dtype) -> Tensor:
    """One bit pattern for every value: zero has no sign and there is one NaN."""
    values = values.to(dtype, copy=True).add_(0.0)
    # A sum without NaN has no NaN among its terms, and is the faster pass.
    return values.masked_fill_(values.isnan(), float("nan")) if bool(values.sum().isnan()) else values
