"""One sample or batch that dominates the statistics of a norm: found in the moments of single batches."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from varshift.model import Call, Norm, tensors
from varshift.probe._bank import Bank
from varshift.probe._types import Leverage

# Channels of a norm that are followed batch by batch. What dominates a variance dominates it in most of them,
# and eight per norm cost nothing to keep for ten thousand batches.
_CHANNELS = 8
# A batch stands out when its spread about the usual mean is this many times that of the median batch. Batches
# of eight values per channel reach 4 by chance, batches from domains that differ by half reach 2.
_OUTSTANDING = 6.0
# And by this many robust standard deviations of the logarithm: single images, or clips of very different
# loudness, differ by as much as 6 among themselves.
_DEVIATIONS = 5.0
# It dominates when it makes the pooled variance this many times that of all other batches.
DOMINATES = 1.5
# More batches than this share are no exception: the data are heavy-tailed, or come from several sources.
_MOST = 0.25
_FEWEST = 3  # batches that tell which of them is the odd one
# Stored statistics hold an outlier when the deviation is at least twice that of the data. One factor for all
# channels would be another scale of the data; and what moves the mean as well, other data altogether.
_POLLUTED, _UNEVEN, _RELATED = 4.0, 0.4, 0.7
_FEWEST_CHANNELS = 4
# Twice the variance and a mean that moved by less than half of what was added to the deviation: worth looking
# for the sample in the rest of the data.
_SUSPECT, _SUSPECT_MEAN = 2.0, 0.25
# A sample is named when it holds half of the sum of squares of its batch and is three times the usual size.
_SAMPLE_SHARE, _SAMPLE_SIZE = 0.5, 3.0


@dataclass(frozen=True, slots=True)
class _Peak:
    """The largest sample of one batch at one norm, still on the device."""

    largest: Tensor
    place: Tensor
    median: Tensor
    energy: Tensor
    rows: int

    def sample(self, size: int) -> tuple[int, float] | None:
        """The place of a sample that dominates its batch and its share of the energy; None if none does."""
        largest, median, energy = float(self.largest), float(self.median), float(self.energy)
        if not np.isfinite(energy) or energy <= 0 or self.rows < 2 or size < 2 or self.rows % size:
            return None
        share = largest**2 / energy
        if share < _SAMPLE_SHARE or largest < _SAMPLE_SIZE * median:
            return None
        return int(self.place) // (self.rows // size), share


class LeverageWatch:
    """Follows the moments of each batch at each norm, and the largest sample at one norm; see `leverage`.

    A tap tells it of each pass and each input of a norm. Nothing is read from the device before the end.

    Args:
        at: Name of the norm at which samples are compared; by default the first that a pass reaches.
    """

    def __init__(self, at: str | None = None) -> None:
        self._at = at
        self._order: dict[str, int] = {}
        self._peaks: list[_Peak | None] = []
        self._picked: dict[int, dict[str, slice]] = {}
        self._channels: dict[int, Tensor] = {}
        self._batches: dict[int, list[tuple[list[int], Tensor, Tensor]]] = {}
        self._positions: dict[int, dict[str, int]] = {}

    def begin(self) -> None:
        """Starts a pass."""
        self._peaks.append(None)

    def look(self, norm: Norm, x: Tensor) -> None:
        """Takes note of the input of a norm."""
        self._order.setdefault(norm.name, len(self._order))
        wanted = self._at is None or norm.name == self._at
        if not wanted or not self._peaks or self._peaks[-1] is not None or x.dim() < 2 or not len(x):
            return
        dims = tuple(range(1, x.dim()))
        sizes = torch.linalg.vector_norm(
            x.detach(), dim=dims, dtype=torch.promote_types(x.dtype, torch.float32)
        )
        largest, place = sizes.max(0)
        self._peaks[-1] = _Peak(largest, place, sizes.median(), sizes.square().sum(), len(x))

    def end(self, banks: Sequence[Bank]) -> None:
        """Ends a pass, while the banks still hold its moments."""
        for number, bank in enumerate(banks):
            if number not in self._channels:
                self._choose(number, bank)
            channels = self._channels[number]
            moments = (bank.mean.index_select(0, channels), bank.var.index_select(0, channels))
            self._batches.setdefault(number, []).append((list(bank.counts), *moments))

    def _choose(self, number: int, bank: Bank) -> None:
        """The channels that are followed: a few of each norm, evenly spaced."""
        picked, channels = {}, []
        for norm in bank.norms:
            if norm.rows > 1:  # each kind of sample has statistics of its own
                continue
            part = bank.slices[norm.name]
            count = min(_CHANNELS, norm.channels)
            places = np.linspace(part.start, part.stop - 1, count).round().astype(int).tolist()
            picked[norm.name] = slice(len(channels), len(channels) + count)
            channels += places
        self._picked[number] = picked
        self._positions[number] = {norm.name: bank.position(norm) for norm in bank.norms}
        self._channels[number] = torch.tensor(channels, dtype=torch.int64, device=bank.mean.device)

    def leverage(self, sizes: Sequence[int], live: Collection[str], eps: dict[str, float]) -> Leverage | None:
        """The sample or batch that dominates the statistics of some norm, None if none does.

        With deviations ``T_b = M2_b + n_b (mean_b - m)^2`` of batch b about the median m of the batch means,
        a batch stands out when ``T_b / n_b`` is many times the median over batches, and dominates when the
        pooled variance with it is half as large again as without.

        Args:
            sizes: Number of samples of each batch.
            live: Names of the norms that learn statistics.
            eps: What each norm adds to a variance, by name.
        """
        entries: list[tuple[str, Leverage]] = []
        for number, batches in self._batches.items():
            means = torch.stack([mean for _, mean, _ in batches]).cpu().double().numpy()
            variances = torch.stack([var for _, _, var in batches]).cpu().double().numpy()
            for name, part in self._picked[number].items():
                if name not in live or name not in self._order:
                    continue
                position = self._positions[number][name]
                counts = np.array([batch[0][position] for batch in batches], dtype=float)
                entry = _dominating(counts, means[:, part], variances[:, part], eps.get(name, 0.0))
                if entry is not None:
                    entries.append((name, entry))
        entries.sort(key=lambda item: self._order[item[0]])
        if not entries:
            return self._lone_sample(sizes, live)
        first = entries[0][1]
        same = tuple(name for name, entry in entries if entry.batch == first.batch)
        return replace(first, norms=same, sample=self.sample(first.batch or 0, sizes))

    def sample(self, batch: int, sizes: Sequence[int]) -> int | None:
        """The place of the sample that dominates a batch, None if none does or it is not known."""
        peak = self._peaks[batch] if batch < len(self._peaks) else None
        place = peak.sample(sizes[batch]) if peak is not None else None
        return None if place is None else place[0]

    @property
    def first(self) -> str | None:
        """Name of the first norm that a pass reached."""
        return min(self._order, key=lambda name: self._order[name], default=None)

    def _lone_sample(self, sizes: Sequence[int], live: Collection[str]) -> Leverage | None:
        """A sample that dominates where too few batches were drawn to compare them with one another."""
        name = self._at or self.first
        if name is None or name not in live or len(sizes) >= _FEWEST:
            return None
        for batch, peak in enumerate(self._peaks[: len(sizes)]):
            place = peak.sample(sizes[batch]) if peak is not None else None
            if peak is None or place is None:
                continue
            energy = sum(float(other.energy) for other in self._peaks if other is not None)
            rows = sum(other.rows for other in self._peaks if other is not None)
            own = float(peak.largest) ** 2
            inflation = energy / rows / max((energy - own) / (rows - 1), np.finfo(float).tiny)
            if inflation >= DOMINATES:
                return Leverage((name,), inflation, own / energy, batch, place[0])
        return None


def _dominating(counts: np.ndarray, means: np.ndarray, variances: np.ndarray, eps: float) -> Leverage | None:
    """The batch that dominates a norm's statistics; the arrays are one row per batch."""
    numbers = np.flatnonzero(counts > 1)
    if len(numbers) < _FEWEST:
        return None
    n, mean, var = counts[numbers, None], means[numbers], variances[numbers]
    if not (np.isfinite(mean).all() and np.isfinite(var).all()):
        return None
    squares = var * (n - 1) + n * np.square(mean - np.median(mean, axis=0))
    spread = squares / n + eps
    standing = np.median(spread / np.maximum(np.median(spread, axis=0), np.finfo(float).tiny), axis=1)
    logarithm = np.log(np.maximum(standing, np.finfo(float).tiny))
    usual = 1.4826 * float(np.median(np.abs(logarithm - np.median(logarithm))))
    odd = (standing >= _OUTSTANDING) & (logarithm >= _DEVIATIONS * usual)
    if not odd.any() or odd.sum() > max(1, _MOST * len(numbers)):
        return None
    with_it = squares.sum(0) / n.sum() + eps
    without = squares[~odd].sum(0) / n[~odd].sum() + eps
    inflation = float(np.median(with_it / without))
    if inflation < DOMINATES:
        return None
    top = int(standing.argmax())
    share = float(np.median(squares[top] / np.maximum(squares.sum(0), np.finfo(float).tiny)))
    return Leverage((), inflation, share, int(numbers[top]), None, int(odd.sum()) - 1)


def polluted(
    norm: Norm, mean: Tensor, var: Tensor, mean_error: Tensor, samples: int
) -> tuple[Leverage, bool] | None:
    """An outlier in the stored statistics of the first norm that the batches at hand do not hold.

    One sample at a distance d from the mean, in a batch of n that entered a moving average with weight w,
    has moved the mean by ``w d / n`` and the variance by ``w d^2 / n``: channel by channel the square of the
    first is the second times ``w / n``, a small number. Other data move the mean by as much as the deviation.

    Args:
        norm: The first norm after the input.
        mean: Mean of its input on the batches at hand.
        var: Variance of its input.
        mean_error: Standard error of the mean over batches, in standard deviations.
        samples: Number of samples of a batch.

    Returns:
        What the outlier does, and whether the statistics alone prove it; None where nothing hints at one.
    """
    if norm.rows > 1 or not norm.centred or norm.size < _FEWEST_CHANNELS:
        return None
    eps = float(getattr(norm.module, "eps", 0.0) or 0.0)
    own_mean, own_var, its_mean, its_var, error = (
        value.detach().reshape(-1).double().cpu().numpy()
        for value in (norm.mean, norm.var, mean, var, mean_error)
    )
    used = np.isfinite(own_var) & np.isfinite(its_var) & np.isfinite(error) & (its_var > eps)
    if used.sum() < max(_FEWEST_CHANNELS, norm.size / 2):
        return None
    own_mean, own_var, its_mean, its_var, error = (
        value[used] for value in (own_mean, own_var, its_mean, its_var, error)
    )
    ratio, excess = (own_var + eps) / (its_var + eps), own_var - its_var
    larger = excess > 0
    if np.median(ratio) < _SUSPECT or larger.mean() < 1 - _MOST:
        return None
    moved, excess = np.square(own_mean - its_mean)[larger], excess[larger]
    pull = float(np.median(moved / excess))
    if pull > _SUSPECT_MEAN:
        return None
    noise = np.square(error * np.sqrt(its_var))[larger]
    weight = norm.momentum if norm.momentum is not None and 0 < norm.momentum <= 1 else 1.0
    proven = (
        np.median(ratio) >= _POLLUTED
        and np.log(ratio).std() >= _UNEVEN
        and pull <= 4 * weight / max(samples, 1)
        and np.median(moved / np.maximum(noise, np.finfo(float).tiny)) >= 4
        and _correlation(np.log(moved + 1e-300), np.log(excess)) >= _RELATED
    )
    inflation = float(np.median(ratio))
    return Leverage((norm.name,), inflation, 1 - 1 / inflation), bool(proven)


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    deviations = float(x.std() * y.std())
    return float(((x - x.mean()) * (y - y.mean())).mean() / deviations) if deviations > 0 else 0.0


def largest_sample(sizes: np.ndarray) -> int | None:
    """The place of a sample that is many times as large as all others, from their norms; None if none is."""
    known = np.where(np.isfinite(sizes), sizes, 0.0)
    if len(known) < _FEWEST:
        return None
    place = int(known.argmax())
    others = np.delete(known, place)
    return place if known[place] >= _OUTSTANDING * max(float(others.max()), np.finfo(float).tiny) else None


def sample_sizes(call: Call) -> np.ndarray | None:
    """Norms of the samples of a batch, of their first input of real numbers; None where they have none."""
    inputs = [value for value in tensors((call.args, call.kwargs)) if value.is_floating_point()]
    if not inputs or inputs[0].dim() < 2 or len(inputs[0]) != call.size:
        return None
    return torch.linalg.vector_norm(inputs[0].detach().flatten(1).double(), dim=1).cpu().numpy()
