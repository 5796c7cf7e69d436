"""The running statistics of all norms as flat vectors, read again and again at little cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from varshift.model import Norm

_EXACT = (torch.float32, torch.float64)
_COUNTER = "num_batches_tracked"


class Statistics:
    """Reads the statistics of some norms, and keeps those of the reading before.

    Of one update with momentum m the batch follows from the running values before and after:
    ``(after - (1 - m) * before) / m``. Nothing is written to a norm, and nothing is added to it.

    Args:
        norms: The norms.
    """

    def __init__(self, norms: Sequence[Norm]) -> None:
        self.norms = tuple(norms)
        sizes = [norm.size for norm in self.norms]
        self.starts = np.cumsum([0, *sizes[:-1]]) if sizes else np.zeros(0, dtype=int)
        self._sizes = np.asarray(sizes, dtype=float)
        total = sum(sizes)
        self._buffers = [[torch.zeros(total), torch.zeros(total)] for _ in range(2)]
        self._place = 0
        self._counters = [getattr(norm.module, _COUNTER, None) is not None for norm in self.norms]
        self.counts: list[int | None] = [None] * len(self.norms)
        self.counts_before = list(self.counts)

    def read(self) -> None:
        """Reads all statistics; what was read last becomes the reading before."""
        self._place = 1 - self._place
        means, variances = self._buffers[self._place]
        with torch.no_grad():
            _flatten([norm.mean for norm in self.norms], means)
            _flatten([norm.var for norm in self.norms], variances)
            self.counts_before, self.counts = self.counts, self._count()

    @property
    def means(self) -> np.ndarray:
        """All running means."""
        return self._buffers[self._place][0].numpy()

    @property
    def variances(self) -> np.ndarray:
        """All running variances."""
        return self._buffers[self._place][1].numpy()

    def both(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Means and variances now, then those of the reading before."""
        pair = (*self._buffers[self._place], *self._buffers[1 - self._place])
        return (pair[0].numpy(), pair[1].numpy(), pair[2].numpy(), pair[3].numpy())

    def exact(self, number: int) -> bool:
        """Whether a norm keeps its statistics in a precision that tells one batch."""
        norm = self.norms[number]
        return norm.mean.dtype in _EXACT and norm.var.dtype in _EXACT

    def finite(self) -> list[bool]:
        """Of each norm, whether its statistics are numbers."""
        with np.errstate(all="ignore"):
            whole = float(self.means.sum()) + float(self.variances.sum())
            if np.isfinite(whole):
                return [True] * len(self.norms)
            fine = np.isfinite(self.means) & np.isfinite(self.variances)
        return [bool(one) for one in self._per_norm(fine) == self._sizes]

    def moved(self) -> list[bool]:
        """Of each norm, whether its statistics are others than at the reading before."""
        before = self._buffers[1 - self._place]
        other = (self.means != before[0].numpy()) | (self.variances != before[1].numpy())
        return [bool(one) for one in self._per_norm(other) > 0]

    def updates(self) -> list[int | None]:
        """Of each norm, its updates since the reading before; None where it does not count them.

        A norm whose counter went back was loaded from a checkpoint or reset: nothing is known of it.
        """
        pairs = zip(self.counts_before, self.counts, strict=True)
        return [None if a is None or b is None or b < a else b - a for a, b in pairs]

    def batch_moments(self, number: int) -> tuple[Tensor, Tensor] | None:
        """Mean and (unbiased) variance per channel of the last batch that a norm saw.

        Args:
            number: Number of the norm.

        Returns:
            None where it was updated more than once, or not, since the reading before, does not count its
            updates, or keeps its statistics in half precision.
        """
        norm = self.norms[number]
        if self.updates()[number] != 1 or not self.exact(number):
            return None
        count = self.counts[number]
        momentum = norm.momentum if norm.momentum is not None else 1 / count if count else None
        if not momentum:
            return None
        start = int(self.starts[number])
        part = slice(start, start + norm.size)
        pairs = zip(self._buffers[self._place], self._buffers[1 - self._place], strict=True)
        mean, variance = (
            (after[part].double() - (1 - momentum) * before[part].double()) / momentum
            for after, before in pairs
        )
        return mean, variance

    def _per_norm(self, values: np.ndarray) -> np.ndarray:
        if not self.norms:
            return np.zeros(0)
        return np.add.reduceat(values.astype(float), self.starts)

    def _count(self) -> list[int | None]:
        tensors = [
            getattr(norm.module, _COUNTER) if counted else None
            for norm, counted in zip(self.norms, self._counters, strict=True)
        ]
        counters: list[Any] = [tensor for tensor in tensors if isinstance(tensor, Tensor)]
        if not counters:
            return [None] * len(tensors)
        # One transfer for all of them where they are on another device.
        values = iter(torch.stack([one.detach().reshape(()) for one in counters]).tolist())
        return [int(next(values)) if isinstance(tensor, Tensor) else None for tensor in tensors]


def _flatten(tensors: Sequence[Tensor], out: Tensor) -> None:
    """Writes tensors one after the other."""
    if not tensors:
        return
    flat = [tensor.detach().reshape(-1) for tensor in tensors]
    if all(tensor.device.type == "cpu" for tensor in flat):
        torch.cat(flat, out=out)
        return
    device = next(tensor.device for tensor in flat if tensor.device.type != "cpu")
    out.copy_(torch.cat([tensor.to(device, torch.float32) for tensor in flat]))
