"""Names for what decides the outcome of a training, so that results are only used again for the same one."""

from __future__ import annotations

import functools
import hashlib
import inspect
import types
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from varshift.comparison._stream import Stream
from varshift.model import tensors

_BATCHES = 16
_DEEPEST = 4


def digest_of(*parts: Any) -> str:
    """16 hexadecimal digits for a sequence of texts, bytes and plain values."""
    whole = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else repr(part).encode()
        whole.update(len(data).to_bytes(8, "little") + data)
    return whole.hexdigest()[:16]


def network_digest(network: nn.Module) -> str:
    """Of a network: its classes, what they say of themselves, and all its values."""
    parts: list[Any] = [f"{type(m).__module__}.{type(m).__qualname__}" for m in network.modules()]
    parts.append(str(network))
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        parts += [name, _tensor_digest(tensor)]
    return digest_of(*parts)


def data_digest(loader: Any) -> str:
    """Of data: their number of batches, and the first of them as drawn with one fixed seed."""
    stream = Stream(loader, 0)
    parts: list[Any] = [stream.length, getattr(loader, "batch_size", None), type(loader).__qualname__]
    for batch in islice(iter(stream), _BATCHES):
        parts += [_tensor_digest(tensor) for tensor in tensors(batch)]
    return digest_of(*parts)


def code_digest(value: Any, depth: int = 0) -> str:
    """Of a function or another object that is called: its code, its defaults and what it closes over.

    What its code calls in turn is known by name only.
    """
    if value is None or isinstance(value, (bool, int, float, str, bytes)):
        return digest_of(value)
    if depth > _DEEPEST:
        return digest_of(type(value).__qualname__)
    follow = functools.partial(code_digest, depth=depth + 1)
    if isinstance(value, functools.partial):
        return digest_of(
            "partial", follow(value.func), *map(follow, value.args), *_pairs(value.keywords, follow)
        )
    if inspect.ismethod(value):
        return digest_of("method", follow(value.__func__), follow(value.__self__))
    if isinstance(value, types.FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if _filled(cell)]
        return digest_of(
            value.__qualname__,
            _code_digest(value.__code__),
            *map(follow, value.__defaults__ or ()),
            *_pairs(value.__kwdefaults__ or {}, follow),
            *map(follow, cells),
        )
    if isinstance(value, type):
        return digest_of("class", value.__module__, value.__qualname__)
    if isinstance(value, nn.Module):
        return network_digest(value)
    if isinstance(value, Tensor):
        return _tensor_digest(value)
    if isinstance(value, np.ndarray):
        return digest_of(value.shape, str(value.dtype), value.tobytes())
    if isinstance(value, (set, frozenset)):  # their order is another one in every process
        return digest_of(type(value).__name__, *sorted(map(follow, value)))
    if isinstance(value, (list, tuple)):
        return digest_of(type(value).__name__, *map(follow, value))
    if isinstance(value, Mapping):
        return digest_of("mapping", *_pairs(value, follow))
    state = vars(value) if hasattr(value, "__dict__") else {}
    return digest_of(type(value).__module__, type(value).__qualname__, *_pairs(state, follow))


def _pairs(values: Mapping[Any, Any], follow: Any) -> Iterable[str]:
    return (digest_of(str(key), follow(item)) for key, item in values.items())


def _filled(cell: types.CellType) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


def _code_digest(code: types.CodeType) -> str:
    constants = [
        _code_digest(item) if isinstance(item, types.CodeType) else _constant(item) for item in code.co_consts
    ]
    return digest_of(code.co_code, code.co_names, code.co_varnames, *constants)


def _constant(value: Any) -> str:
    return repr(sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)


def _tensor_digest(tensor: Tensor) -> str:
    if tensor.is_meta:
        return digest_of("meta", tuple(tensor.shape), str(tensor.dtype))
    if tensor.layout is not torch.strided or tensor.is_nested:
        return digest_of(str(tensor))
    plain = tensor.detach().cpu().contiguous().resolve_conj().resolve_neg()
    return digest_of(
        tuple(plain.shape), str(plain.dtype), plain.reshape(-1).view(torch.uint8).numpy().tobytes()
    )
