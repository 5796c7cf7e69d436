"""How the probability of each sample's class went so far: count, mean and squared deviations, no lists."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from varshift._arguments import count as whole_number
from varshift.data._gather import gather_rows, shared_by_several
from varshift.data._running_moments import Moments, grouped


class PredictionHistory:
    r"""Count, mean and variance of the probabilities :math:`H_i` that each sample's class has had so far.

    Three numbers per sample stand for the whole history, however long; they are kept in float64 and updated
    by Chan's rule, so that they are what the two-pass formulas give, for probabilities near 1, too. A
    sample that comes several times in one batch counts as often.

    Among several processes each adds what it sees, and `synchronise` pools that: afterwards all of them hold
    the same bits. Until then a process reads what all had at the last synchronisation, plus its own.

    Args:
        size: Number of samples of the data set. A sample's id is its index, from 0 to `size - 1`.
        num_classes: Number of probabilities per sample; None for one, that of the correct class.
        device: Where the numbers are kept. The type is always float64.
        process_group: The processes that `synchronise` pools; None for all.

    Raises:
        ValueError: If the size is below 1; in `update`, for ids outside the data set, shapes that do not fit
            and values outside [0, 1].

    Reference: Chang, Learned-Miller and McCallum (NIPS 2017), "Active bias: training more accurate neural
    networks by emphasizing high variance samples". Its text was not available: that the history is unbounded
    and includes the burn-in follows a public re-implementation.

    Example:
        >>> from varshift.data import PredictionHistory
        >>> history = PredictionHistory(3)
        >>> history.update([0, 2], [0.25, 0.5])
        >>> history.update([0], [0.75])
        >>> history.count().tolist(), history.mean().tolist(), history.variance().tolist()
        ([2, 0, 1], [0.5, 0.0, 0.5], [0.0625, 0.0, 0.0])
    """

    def __init__(
        self,
        size: int,
        num_classes: int | None = None,
        *,
        device: torch.device | str | None = "cpu",
        process_group: Any = None,
    ) -> None:
        self.size = whole_number("size", size, 1)
        self.num_classes = None if num_classes is None else whole_number("num_classes", num_classes, 1)
        self.process_group = process_group
        self._shared = Moments.zeros(self.size, self.num_classes, device)
        self._own: Moments | None = None
        self._seen_shared = self._seen_own = 0
        self.version = 0

    @property
    def device(self) -> torch.device:
        """Where the numbers are kept."""
        return self._shared.count.device

    @property
    def seen(self) -> int:
        """Number of samples added by all processes; between synchronisations estimated from one's own."""
        processes = 1 if self._own is None else dist.get_world_size(self.process_group)
        return self._seen_shared + self._seen_own * processes

    @property
    def synchronised(self) -> bool:
        """Whether nothing was added since the last synchronisation that other processes do not know of."""
        return self._seen_own == 0

    def index(self, ids: Any) -> Tensor:
        """The ids as a tensor on the history's device.

        Raises:
            ValueError: If they are not whole numbers in one dimension or lie outside the data set.
        """
        index = ids if isinstance(ids, Tensor) else torch.as_tensor(ids, device="cpu")
        if index.numel() == 0 and not isinstance(ids, Tensor):
            index = index.to(torch.int64)
        if index.dim() != 1 or index.is_floating_point() or index.is_complex() or index.dtype is torch.bool:
            raise ValueError(
                f"ids have shape {tuple(index.shape)} and type {index.dtype}: they must be whole numbers in "
                "one dimension, the samples' indices in the data set."
            )
        index = index.to(torch.int64)
        unknown = (index < 0) | (index >= self.size)
        if bool(unknown.any()):
            raise ValueError(
                f"ids hold {int(index[unknown][0])}, which is unknown: this history has samples 0 to "
                f"{self.size - 1}. Ids are indices in the data set that its size was taken from."
            )
        return index.to(self.device)

    def update(self, ids: Any, probabilities: Any) -> None:
        """Adds a probability per id (or one per class).

        Args:
            ids: Indices in the data set, of shape (B,).
            probabilities: Values in [0, 1] of shape (B,), or (B, num_classes).
        """
        index = self.index(ids)
        if not isinstance(probabilities, Tensor):
            probabilities = torch.as_tensor(probabilities, dtype=torch.float64, device="cpu")
        # To the device first: there may be no float64 where the probabilities come from.
        values = probabilities.detach().to(self.device).to(torch.float64)
        expected = (len(index),) if self.num_classes is None else (len(index), self.num_classes)
        if tuple(values.shape) != expected:
            raise ValueError(
                f"probabilities have shape {tuple(values.shape)}: with {len(index)} ids it must be "
                f"{expected}."
            )
        if not bool(((values >= 0) & (values <= 1)).all()):
            raise ValueError(
                f"probabilities range from {float(values.min()):g} to {float(values.max()):g}: they must be "
                "in [0, 1], without NaN. Logits must go through softmax or sigmoid first."
            )
        unique, added = grouped(index, values)
        if shared_by_several(self.process_group):
            if self._own is None:
                self._own = Moments.zeros(self.size, self.num_classes, self.device)
            target = self._own
            self._seen_own += len(index)
        else:
            target = self._shared
            self._seen_shared += len(index)
        target.put(unique, target.rows(unique).plus(added))
        self.version += 1

    def _rows(self, ids: Any) -> Moments:
        index = None if ids is None else self.index(ids)
        rows = self._shared.rows(index)
        return rows if self._own is None or self.synchronised else rows.plus(self._own.rows(index))

    def count(self, ids: Any = None) -> Tensor:
        """Length of the histories of some ids, or of all samples."""
        return self._rows(ids).count.clone()

    def mean(self, ids: Any = None) -> Tensor:
        """Mean of the histories of some ids, or of all samples; 0 where there is none."""
        return self._rows(ids).mean.clone()

    def variance(self, ids: Any = None, *, ddof: int = 0) -> Tensor:
        """Variance of the histories of some ids, or of all samples: squared deviations over count - ddof.

        Where a history is not longer than `ddof`, it is 0.
        """
        return self.moments(ids, ddof=ddof)[2]

    def moments(self, ids: Any = None, *, ddof: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Count, mean and variance at once."""
        if ddof not in (0, 1):
            raise ValueError(f"ddof={ddof!r} must be 0 (the published codes) or 1 (the unbiased estimate).")
        rows = self._rows(ids)
        divisor = (rows.count - ddof).clamp(min=1)[(...,) + (None,) * (rows.mean.dim() - 1)]
        return rows.count.clone(), rows.mean.clone(), rows.squares / divisor

    def synchronise(self) -> None:
        """Pools what all processes added since the last time; each of them must call this equally often.

        Only samples that were seen travel: two collective calls, 8 bytes for each number of a seen sample.
        """
        if not shared_by_several(self.process_group):
            return
        own = self._own or Moments.zeros(0, self.num_classes, self.device)
        touched = own.count.nonzero()[:, 0]
        rows = own.rows(touched)
        width = 1 if self.num_classes is None else self.num_classes
        packed = torch.cat(
            [
                touched[:, None].double(),
                rows.count[:, None].double(),
                rows.mean.reshape(-1, width),
                rows.squares.reshape(-1, width),
            ],
            dim=1,
        )
        shape = (-1,) if self.num_classes is None else (-1, width)
        for part in gather_rows(packed, self.process_group):
            part = part.to(self.device)
            index, count = part[:, 0].long(), part[:, 1].long()
            mean, squares = part[:, 2 : 2 + width].reshape(shape), part[:, 2 + width :].reshape(shape)
            self._shared.put(index, self._shared.rows(index).plus(Moments(count, mean, squares)))
            self._seen_shared += int(count.sum())
        self._own, self._seen_own = None, 0
        self.version += 1

    def state_dict(self) -> dict[str, Any]:
        """Everything; call `synchronise` first so that no process's part is missing."""
        rows = self._rows(None).copy()
        seen = self._seen_shared + self._seen_own
        return {"count": rows.count, "mean": rows.mean, "squares": rows.squares, "seen": seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a state, on whatever device this history is.

        Raises:
            ValueError: If the state is of another number of samples or classes.
        """
        missing = {"count", "mean", "squares", "seen"} - set(state_dict)
        if missing:
            raise ValueError(f"state_dict lacks {sorted(missing)}: pass what state_dict() of a history gave.")
        shape = tuple(state_dict["mean"].shape)
        if shape != tuple(self._shared.mean.shape):
            raise ValueError(
                f"state_dict is of shape {shape} and this history of {tuple(self._shared.mean.shape)}: "
                "resume with the same data set and num_classes."
            )
        saved = Moments(state_dict["count"], state_dict["mean"], state_dict["squares"])
        self._shared = saved.copy().to(self.device)
        self._own, self._seen_own, self._seen_shared = None, 0, int(state_dict["seen"])
        self.version += 1

    def to(self, device: torch.device | str) -> PredictionHistory:
        """Moves the numbers to a device."""
        self._shared = self._shared.to(device)
        self._own = None if self._own is None else self._own.to(device)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """A process group cannot be pickled or copied: a copy belongs to all processes."""
        return {**self.__dict__, "process_group": None}

    def __repr__(self) -> str:
        classes = "" if self.num_classes is None else f", num_classes={self.num_classes}"
        return f"{type(self).__name__}(size={self.size}{classes}, seen={self._seen_shared + self._seen_own})"
