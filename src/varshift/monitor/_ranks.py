"""What the other ranks of a data-parallel training see, told through the store of the process group."""

from __future__ import annotations

import math
import zlib
from collections import Counter
from datetime import timedelta
from typing import Any

import numpy as np
import torch.distributed as dist
from torch import nn

from varshift.evidence import RankFacts, RankNorm
from varshift.monitor._statistics import Statistics
from varshift.monitor._weights import Weights

_CHANNELS = 8  # of each norm
_NORMS = 64  # spread over the network
_RANKS = 16  # the first ones
_SLOTS = 8  # messages of a rank that may lie in the store at once
_EVERY = 1.1  # readings between two comparisons: every second one at first, later in proportion
_PATIENCE = timedelta(seconds=5)
_TOGETHER = 0.7  # share of the other's spread from which the ranks are told not to begin together
_OPENED: Counter[int] = Counter()


class Ranks:
    """Compares the batches of the ranks of a data-parallel training without a collective operation.

    Each rank writes what it read of some norms, before and after an update, into the store through which the
    ranks met. The first rank reads what is there and never waits, so that a rank without a watch holds up
    nobody. Where the store fails the comparison ends, and nothing else.

    After n updates with momentum m the running value is ``kept * begin + (1 - kept) * batches`` with ``kept =
    (1 - m)^n``. A wrapper that broadcasts buffers gives all ranks the values of the first one to begin with,
    otherwise each begins with its own. Of both readings the one whose difference between the ranks varies
    less from step to step is right: the wrong one has the batches of earlier steps in it, too.

    Args:
        statistics: Where the statistics are read.
        weights: The weights; ranks that hold others train other networks, and are not compared.
    """

    def __init__(self, statistics: Statistics, weights: Weights) -> None:
        self._statistics, self._weights = statistics, weights
        count = len(statistics.norms)
        self._numbers = list(range(0, count, max(1, math.ceil(count / _NORMS))))
        self._parts: list[slice] = []
        places, start = [], 0
        for number in self._numbers:
            norm, first = statistics.norms[number], int(statistics.starts[number])
            few = np.arange(first, first + norm.size, max(1, math.ceil(norm.size / _CHANNELS)))
            places.append(few)
            self._parts.append(slice(start, start + len(few)))
            start += len(few)
        self._places = np.concatenate(places) if places else np.zeros(0, dtype=int)
        names = ";".join(f"{statistics.norms[number].name}/{len(self._places)}" for number in self._numbers)
        self._network = zlib.crc32(names.encode())
        self._opened: int | None = None
        self._store: Any = None
        self._alive = bool(self._numbers)
        self._rank = self._ranks = 0
        self._seen, self._next, self._written = 0, 2, 0
        self._waiting: dict[int, np.ndarray] = {}  # own messages, by slot
        self._sums: np.ndarray | None = None  # way of reading, sum or sum of squares, figure, rank, channel
        self._compared = 0

    def see(self, step: int) -> None:
        """Takes note of a reading, right after it was read.

        Args:
            step: Number of the step.
        """
        self._seen += 1
        if not self._alive or self._seen < self._next:
            return
        self._next = max(self._seen + 2, math.ceil(self._seen * _EVERY))
        try:
            if self._connect():
                self._write(step)
                self._collect()
        except Exception:  # a store that is gone, or of a kind that cannot do this
            self._alive = False

    def facts(self) -> RankFacts | None:
        """What is known now; None on all ranks but the first, or where no other rank was heard."""
        if self._alive and self._waiting:
            try:
                self._collect()
            except Exception:
                self._alive = False
        if self._sums is None or self._compared < 2:
            return None
        count = self._compared
        means = self._sums[:, 0] / count
        variances = (self._sums[:, 1] - count * means**2).clip(min=0) / (count - 1)
        together, apart = (float(np.nansum(variances[way, 0])) for way in (0, 1))
        way = 1 if apart < _TOGETHER * together else 0
        norms = {}
        for number, part in zip(self._numbers, self._parts, strict=True):
            offset, ratio = means[way][..., part]
            if not (np.isfinite(offset).all() and np.isfinite(ratio).all()):
                continue
            errors = np.sqrt(variances[way][..., part].mean(2) / count)  # figure, rank
            sizes = np.sqrt((means[way][..., part] ** 2).mean(2))
            levels = 1 + ratio.mean(1)
            name = self._statistics.norms[number].name
            norms[name] = RankNorm(
                name,
                float(levels.max() / max(levels.min(), 1e-12)),
                float(sizes[0].max()),
                _consistency(sizes[0], errors[0]),
                _consistency(sizes[1], errors[1]),
            )
        watched = [self._statistics.norms[number].module for number in self._numbers]
        return RankFacts(
            ranks=self._ranks,
            readings=count,
            synchronised=all(isinstance(module, nn.SyncBatchNorm) for module in watched),
            broadcast=way == 0,
            norms=norms,
        )

    # -- the store ----------------------------------------------------------------------------------------

    def _connect(self) -> bool:
        if self._store is not None:
            return True
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return False
        from torch.distributed.distributed_c10d import _get_default_store

        self._rank, self._ranks = dist.get_rank(), min(dist.get_world_size(), _RANKS)
        self._alive = self._rank < self._ranks
        # A connection of its own: one that waits for a key in another thread would hold this one up.
        store: Any = _get_default_store()
        self._store = store.clone()
        self._store.set_timeout(_PATIENCE)
        self._opened = _OPENED[self._network]
        _OPENED[self._network] += 1
        return self._alive

    def _key(self, slot: int, rank: int) -> str:
        return f"varshift/{self._network}/{self._opened}/{slot}/{rank}"

    def _write(self, step: int) -> None:
        message = self._message(step)
        slot = self._written % _SLOTS
        self._written += 1
        if message is None:
            return
        if self._rank == 0:
            self._waiting[slot] = message
        else:
            self._store.set(self._key(slot, self._rank), message.tobytes())

    def _message(self, step: int) -> np.ndarray | None:
        """Step, a digest of the weights, and of each channel what was kept, mean and variance, twice."""
        kept = self._kept()
        if not np.isfinite(kept).any():
            return None
        readings = [part[self._places].astype(float) for part in self._statistics.both()]
        return np.concatenate([[float(step), float(self._weights.digest())], kept, *readings])

    def _kept(self) -> np.ndarray:
        """Of each channel, what its updates since the reading before left of what was there; else NaN."""
        updates, counts = self._statistics.updates(), self._statistics.counts
        kept = np.full(len(self._places), np.nan)
        for number, part in zip(self._numbers, self._parts, strict=True):
            many, count = updates[number], counts[number]
            momentum = self._statistics.norms[number].momentum
            if many and count and self._statistics.exact(number):
                share = 1 - many / count if momentum is None else (1 - momentum) ** many
                kept[part] = share if 0 <= share < 1 else np.nan
        return kept

    def _collect(self) -> None:
        """Reads what the other ranks wrote, where all of them did."""
        for slot, own in list(self._waiting.items()):
            keys = [self._key(slot, rank) for rank in range(1, self._ranks)]
            if not self._store.check(keys):
                continue
            messages = [np.frombuffer(self._store.get(key), dtype=float) for key in keys]
            # What a rank wrote into this slot at an earlier step is overwritten when it gets here.
            if any(message[0] < own[0] for message in messages):
                continue
            del self._waiting[slot]
            for key in keys:
                self._store.delete_key(key)
            if all(len(message) == len(own) and (message[:2] == own[:2]).all() for message in messages):
                self._compare(np.stack([own, *messages])[:, 2:])

    def _compare(self, messages: np.ndarray) -> None:
        kept, mean, variance, mean_before, variance_before = np.split(messages, 5, axis=1)
        rows = []
        for together in (True, False):
            begins = [each[:1] if together else each for each in (mean_before, variance_before)]
            batches, spreads = (
                (now - kept * begin) / (1 - kept) for now, begin in zip((mean, variance), begins, strict=True)
            )
            pooled = spreads.mean(0)
            scale = np.maximum(np.where(pooled > 0, pooled, variance.mean(0)), 1e-30)
            figures = np.stack([(batches - batches.mean(0)) / np.sqrt(scale), (spreads - pooled) / scale])
            rows.append(np.stack([figures, figures**2]))
        self._sums = np.stack(rows) + (0.0 if self._sums is None else self._sums)
        self._compared += 1


def _consistency(sizes: np.ndarray, errors: np.ndarray) -> float:
    """Size over standard error of the rank that is furthest off."""
    return float((sizes / np.maximum(errors, 1e-9)).max()) if sizes.max() > 1e-9 else 0.0
