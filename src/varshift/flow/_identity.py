"""Which operation a tensor came from, without keeping any tensor alive."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from varshift.flow._types import Ref


class Identities:
    """Tells tensors and their memory apart by identity, for as long as they live."""

    def __init__(self) -> None:
        self._tensors: dict[int, tuple[Any, Any]] = {}
        self._storages: dict[int, tuple[StorageWeakRef, int]] = {}

    def find(self, tensor: Tensor) -> Any:
        """What a tensor was bound to, None for one that is not known."""
        entry = self._tensors.get(id(tensor))
        return entry[1] if entry is not None and entry[0]() is tensor else None

    def bind(self, tensor: Tensor, place: Any) -> None:
        """Notes where a tensor came from: a `Ref`, or a pair of a `Ref` and a position in its results."""
        self._tensors[id(tensor)] = (weakref.ref(tensor), place)

    def own(self, tensor: Tensor, reference: Ref) -> None:
        """Notes which node's memory a tensor holds, unless that memory is known already."""
        storage = storage_of(tensor)
        if storage is None:
            return
        entry = self._storages.get(storage._cdata)
        if entry is None or entry[0].expired():
            self._storages[storage._cdata] = (StorageWeakRef(storage), reference.index)

    def owner(self, tensor: Tensor) -> int | None:
        """The node whose memory an unknown tensor shares."""
        storage = storage_of(tensor)
        entry = self._storages.get(storage._cdata) if storage is not None else None
        return entry[1] if entry is not None and not entry[0].expired() else None


def storage_of(tensor: Tensor) -> Any:
    """A tensor's storage, None for sparse tensors and others without one."""
    try:
        return tensor.untyped_storage()
    except (RuntimeError, NotImplementedError):
        return None
