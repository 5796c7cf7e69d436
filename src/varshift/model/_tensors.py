"""Copies of tensors: what was shared stays shared, and large weights that nobody writes cost nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

# Up to this many bytes a network is copied for good: that costs less than one of its forward passes. The
# tensors of larger ones are copied when they are written to.
LARGE_NETWORK = 2**28
_LARGE_TENSOR = 2**20


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of memory under several tensors, shared memory once."""
    sizes: dict[int, int] = {}
    for tensor in tensors:
        storage = _storage(tensor)
        if storage is not None:
            sizes[storage._cdata] = storage.nbytes()
    return sum(sizes.values())


class TensorCopier:
    """Copies tensors; those that share memory still do so in the copy.

    Args:
        lazily: Whether large tensors are copied only when either side writes to them.
    """

    def __init__(self, *, lazily: bool = False) -> None:
        self._lazily = lazily
        self._storages: dict[int, tuple[Any, Tensor]] = {}

    def copy(self, tensor: Tensor, memo: dict[int, Any], copy_value: Callable[[Any], Any]) -> Tensor:
        """A copy with the same values, layout, gradient and attributes."""
        plain = type(tensor) in (Tensor, nn.Parameter)
        storage = _storage(tensor) if plain else None
        if storage is None:
            return self._unusual(tensor, memo)
        with torch.no_grad():
            copied = view_of(self._clone(storage, tensor.device), tensor)
        if type(tensor) is nn.Parameter:
            copied = nn.Parameter(copied, requires_grad=tensor.requires_grad)
        elif tensor.requires_grad and tensor.is_leaf:
            copied.requires_grad_()
        memo[id(tensor)] = copied
        for name, value in vars(tensor).items():
            setattr(copied, name, copy_value(value))
        if tensor.is_leaf and tensor.grad is not None:
            copied.grad = copy_value(tensor.grad)
        return copied

    def memory(self, tensor: Tensor) -> tuple[Tensor, Tensor] | None:
        """The bytes under a tensor and a copy of them; None where there are none to copy."""
        storage = _storage(tensor)
        if storage is None:
            return None
        with torch.no_grad():
            flat = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage)
            return flat, self._clone(storage, tensor.device)

    def _clone(self, storage: Any, device: torch.device) -> Tensor:
        key = storage._cdata
        if key not in self._storages:
            flat = torch.empty(0, dtype=torch.uint8, device=device).set_(storage)
            # The storage is kept: its address names it only while it lives.
            self._storages[key] = storage, self._clone_flat(flat)
        return self._storages[key][1]

    def _clone_flat(self, flat: Tensor) -> Tensor:
        if self._lazily and flat.numel() >= _LARGE_TENSOR and hasattr(torch, "_lazy_clone"):
            try:
                return torch._lazy_clone(flat)  # pyright: ignore[reportPrivateImportUsage]
            except RuntimeError:  # memory that torch did not allocate itself
                pass
        return flat.clone()

    def _unusual(self, tensor: Tensor, memo: dict[int, Any]) -> Tensor:
        """Sparse and quantised tensors, those without values, subclasses."""
        if not tensor.is_leaf:
            return tensor.detach().clone()
        try:
            return copy.deepcopy(tensor, memo)
        except (RuntimeError, NotImplementedError, TypeError):
            return tensor.detach().clone()


def view_of(flat: Tensor, tensor: Tensor) -> Tensor:
    """A tensor over other memory, laid out like a given one."""
    view = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return view.set_(flat.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())


def _storage(tensor: Tensor) -> Any:
    """A tensor's memory, None where copying it byte by byte would not do."""
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
        return None
    if tensor.is_nested or tensor.is_conj() or tensor.is_neg() or type(tensor).__name__ == "FakeTensor":
        return None
    try:
        storage = tensor.untyped_storage()
    except (RuntimeError, NotImplementedError):
        return None
    return storage if storage.device.type == tensor.device.type else None


def same_bits(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors of one layout hold the same bits: signs of zeros count, and NaN equals itself."""
    if left.dtype.is_complex:
        left, right = torch.view_as_real(left), torch.view_as_real(right)
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[left.element_size()]
    with torch.no_grad():
        return torch.equal(left.detach().view(integers), right.detach().view(integers))


def still_shared(tensor: Tensor) -> bool:
    """Whether a tensor's memory is a lazy copy that nobody has written to."""
    is_lazy_copy = getattr(torch._C, "_is_cow_tensor", None)
    return is_lazy_copy is not None and is_lazy_copy(tensor)


def copier_for(model: nn.Module) -> TensorCopier:
    """Copies the tensors of a model, those of a large one lazily."""
    return TensorCopier(lazily=storage_bytes((*model.parameters(), *model.buffers())) > LARGE_NETWORK)
