"""Drawing batches from whatever the user calls a loader."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from varshift._errors import DataError
from varshift.model import batch_size, describe, first_tensor, is_whole, move, own_iteration


def model_device(model: nn.Module) -> torch.device:
    """Device of the model's first parameter or buffer."""
    tensor = next(iter(model.parameters()), None)
    if tensor is None:
        tensor = next(iter(model.buffers()), None)
    return torch.device("cpu") if tensor is None else tensor.device


def batch_size_of(loader: Any) -> int | None:
    """Number of samples that a loader says its first batch has, None where it says nothing."""
    size = getattr(loader, "batch_size", None)
    if not isinstance(loader, DataLoader) or not isinstance(size, int):
        return None
    try:
        return min(size, len(loader.dataset))  # type: ignore[arg-type]
    except (TypeError, NotImplementedError):
        return size


def draw(
    loader: Iterable[Any], max_batches: int | None, device: torch.device | str | None
) -> Iterator[tuple[int, Any]]:
    """Yields ``(number, batch)`` from a loader, moved to a device; an error inside the loader passes through.

    Raises:
        DataError: If the loader cannot be iterated or yields nothing.
    """
    if max_batches is not None and max_batches < 1:
        raise DataError(f"max_batches is {max_batches}: at least one batch is needed.")
    if is_whole(loader):
        raise DataError(
            f"loader is a {type(loader).__name__} that holds tensors: this looks like one batch. "
            "Wrap it in a list: [batch]."
        )
    if isinstance(loader, Tensor) or (not hasattr(loader, "__iter__") and not hasattr(loader, "__getitem__")):
        raise DataError(
            f"loader is {describe(loader)}: expected an iterable of batches. "
            "Wrap a single batch in a list: [batch]."
        )
    if isinstance(loader, Mapping):
        keys = ", ".join(repr(key) for key in list(loader)[:4])
        raise DataError(
            f"loader is a {type(loader).__name__} with the keys {keys}: expected an iterable of batches. "
            + (
                "This looks like one batch: wrap it in a list, [batch]."
                if any(isinstance(value, Tensor) for value in loader.values())
                else "Pass one of its values."
            )
        )
    if isinstance(loader, Dataset) and not hasattr(loader, "__iter__"):
        raise DataError(
            f"loader is a {type(loader).__name__}, which yields single samples: "
            "wrap it in a torch.utils.data.DataLoader."
        )
    if _is_one_batch(loader):
        raise DataError(
            f"loader is a {type(loader).__name__} of tensors of different kinds: this looks like one batch, "
            "not like several. Wrap it in a list: [batch]."
        )
    count = 0
    for batch in islice(iter(own_iteration(loader)), max_batches):
        if first_tensor(batch) is None and not hasattr(batch, "__dict__"):
            arrays = isinstance(batch, np.ndarray) or (
                isinstance(batch, (tuple, list)) and any(isinstance(item, np.ndarray) for item in batch)
            )
            remedy = (
                " Convert arrays with torch.from_numpy, or wrap the data in a DataLoader." if arrays else ""
            )
            raise DataError(
                f"batch {count} is {describe(batch)} without any tensor: expected a tensor, "
                f"(inputs, targets) or a mapping of tensors.{remedy}"
            )
        if batch_size(batch) == 0:
            raise DataError(f"batch {count} is empty: its tensors hold no samples. Skip such batches.")
        yield count, move(batch, device)
        count += 1
    if count == 0:
        raise DataError(
            "the loader yielded no batches: "
            + (
                f"it is a {type(loader).__name__}, which can be gone through once only and may be used up. "
                "Pass a DataLoader or a list of batches."
                if isinstance(loader, Iterator)
                else "check that its data set is not empty."
            )
        )


def _is_one_batch(loader: Any) -> bool:
    """Whether a pair of tensors was passed for a loader: batches of the same loader are of one kind."""
    if not isinstance(loader, (tuple, list)) or len(loader) < 2:
        return False
    if not all(isinstance(item, Tensor) for item in loader):
        return False
    return len({(item.dtype, item.dim()) for item in loader}) > 1


class FiniteWatch:
    """Collects whether the inputs of each batch were finite, without waiting for the device every time."""

    def __init__(self) -> None:
        self._flags: list[tuple[int, Tensor]] = []

    def look(self, number: int, batch: Any) -> None:
        """Notes one batch."""
        tensor = first_tensor(batch)
        if tensor is not None and tensor.is_floating_point() and tensor.numel():
            # A sum passes over memory once; it is finite just when all values are (in double: no overflow).
            wide = torch.float32 if tensor.device.type == "mps" else torch.float64
            total = tensor.sum(dtype=torch.float32 if tensor.dtype != torch.float64 else wide)
            self._flags.append((number, torch.isfinite(total)))

    def complain(self) -> None:
        """Raises DataError for the first batch that was not finite."""
        if not self._flags:
            return
        flags = torch.stack([flag.cpu() for _, flag in self._flags])
        if not bool(flags.all()):
            number = self._flags[int((~flags).nonzero()[0])][0]
            self._flags.clear()
            raise DataError(
                f"batch {number}: its inputs contain NaN or infinite values. Statistics learned from them "
                "would be NaN for ever; clean the data set or skip such samples."
            )
        self._flags.clear()
