"""How far running statistics trail the batches, read out of how the statistics themselves move."""

from __future__ import annotations

import math

import numpy as np

from varshift.monitor._statistics import Statistics
from varshift.theory import fold

_MOST = 20  # updates of a stretch, however slow the statistics are
_SHARE = 0.7  # updates times momentum: long enough to see the batches, short enough to see them apart
_CHANNELS = 32  # of each norm, for the offset of its mean
_SETTLED = 3.0  # updates times momentum after which the start is forgotten
_SLOW = 0.03  # below this momentum the start is not waited for
_TRIED = 30  # updates before anything is said
_RATIO, _OFFSET = 1.5, 0.5  # as for the errors of the rules


class Trail:
    """One norm: where its statistics were at the start of a stretch of updates, and what the stretch says.

    After n updates with momentum m the running value is ``(1 - m)^n old + (1 - (1 - m)^n) batches``, where
    ``batches`` is their weighted mean; it follows from two readings however many updates lie between.

    Args:
        statistics: Where the statistics are read.
        number: Number of the norm in it.
    """

    def __init__(self, statistics: Statistics, number: int) -> None:
        self._statistics = statistics
        norm = statistics.norms[number]
        start = int(statistics.starts[number])
        self._momentum = norm.momentum
        self._all = slice(start, start + norm.size)
        self._few = slice(start, start + norm.size, max(1, norm.size // _CHANNELS))
        self._eps = float(getattr(norm.module, "eps", 0.0) or 0.0)
        self.ratio: float | None = None
        self.offset: float | None = None
        self.trailing = 0
        self._total = 0
        self._restart(0)

    def _restart(self, count: int) -> None:
        self._count, self._updates = count, 0
        self._variance = float(self._statistics.variances[self._all].mean(dtype=float))
        self._mean = self._statistics.means[self._few].astype(float)

    def see(self, updates: int | None, count: int | None, momentum: float | None) -> None:
        """Takes note of a reading.

        Args:
            updates: Updates since the reading before; None where that is not known.
            count: What the norm counted in all.
            momentum: Its momentum now.
        """
        if updates is None or count is None or momentum != self._momentum:
            self._momentum, self.trailing = momentum, 0
            self._restart(count or 0)
            return
        self._updates += updates
        self._total += updates
        length = _MOST if not momentum else min(_MOST, math.ceil(_SHARE / momentum))
        if self._updates < max(length, 2):
            return
        kept = (1 - momentum) ** self._updates if momentum else self._count / max(count, 1)
        if kept < 1 and self._count > 0:
            self._compare(kept)
        self._restart(count)

    def _compare(self, kept: float) -> None:
        with np.errstate(all="ignore"):
            now = float(self._statistics.variances[self._all].mean(dtype=float))
            batches = (now - kept * self._variance) / (1 - kept)
            mean = self._statistics.means[self._few].astype(float)
            offset = (mean - (mean - kept * self._mean) / (1 - kept)) / math.sqrt(max(now, 0.0) + 1e-30)
            size = float(np.sqrt(np.mean(offset**2)))
        ratio = (batches + self._eps) / (now + self._eps) if now + self._eps > 0 else math.nan
        if not (math.isfinite(ratio) and ratio > 0 and math.isfinite(size)):
            self.ratio = self.offset = None
            return
        self.ratio, self.offset = ratio, size
        momentum = self._momentum
        ready = self._total >= _TRIED and (
            momentum is None or momentum < _SLOW or self._total * momentum >= _SETTLED
        )
        far = fold(ratio) >= _RATIO or size >= _OFFSET
        self.trailing = self.trailing + 1 if ready and far else 0
