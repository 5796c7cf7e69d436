"""The remembered moments of many layers' inputs, in flat vectors so that a step costs a few kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from varshift.optim._input_statistics import BatchMoments, wide_type


@dataclass(frozen=True, slots=True)
class Entry:
    """What a bank must know of a layer.

    Attributes:
        channels: Channels of its input.
        groups: Groups of the convolution.
        fan_in: Inputs of one unit.
    """

    channels: int
    groups: int
    fan_in: int


class MomentBank:
    """Mean and variance of the inputs of layers on one device, and what was seen since the last step.

    Args:
        entries: The layers.
        device: Where they are.
    """

    def __init__(self, entries: Sequence[Entry], device: torch.device) -> None:
        self.entries = list(entries)
        self.device = device
        wide = wide_type(device)
        self._starts = [0]
        for entry in entries:
            self._starts.append(self._starts[-1] + entry.channels)
        total, layers = self._starts[-1], len(entries)
        self.mean = torch.zeros(total, dtype=wide, device=device)
        self.variance = torch.ones(total, dtype=wide, device=device)
        # Sums of h - mean and of its square per channel, elements and rows per layer: all add up over calls
        # and processes. Counts stay on the host, but for compiled passes, which would compile anew for each.
        self._sums = torch.zeros(2, total, dtype=wide, device=device)
        self._counts = torch.zeros(2, layers, dtype=wide, device=device)
        self._host_counts = [[0] * layers, [0] * layers]
        channels = torch.tensor([entry.channels for entry in entries], dtype=torch.int64)
        self._owner = torch.arange(layers).repeat_interleave(channels).to(device)
        groups = torch.tensor([entry.groups for entry in entries], dtype=torch.int64)
        widths = (channels // groups).repeat_interleave(groups)
        self._group = torch.arange(len(widths)).repeat_interleave(widths).to(device)
        self._groups = len(widths)
        self._fan_in = torch.tensor([entry.fan_in for entry in entries], dtype=wide).to(device)

    def to(self, device: torch.device) -> None:
        """Moves to another device; from the meta device there is nothing to bring."""
        if device != self.device:
            moved = MomentBank(self.entries, device)
            for index in range(len(self.entries)):
                moved.copy_from(index, self, index)
            self.__dict__.update(moved.__dict__)

    def place(self, index: int) -> slice:
        """Where the channels of a layer are."""
        return slice(self._starts[index], self._starts[index + 1])

    def add(self, index: int, batch: BatchMoments) -> None:
        """Adds what one call of a layer saw."""
        place = self.place(index)
        mean, variance = batch.mean.to(self.device), batch.variance.to(self.device)
        offset = mean - self.mean[place]
        sums = torch.stack([offset, variance + offset.square()])
        self._sums[:, place].add_(sums, alpha=batch.count)
        if torch.compiler.is_compiling():
            self._counts[0, index].add_(batch.count)
            self._counts[1, index].add_(batch.rows)
        else:
            self._host_counts[0][index] += batch.count
            self._host_counts[1][index] += batch.rows

    def pending(self) -> Tensor:
        """What was seen since the last step, as one vector that may be summed over processes."""
        host = torch.tensor(self._host_counts, dtype=self._counts.dtype)
        return torch.cat([self._sums.flatten(), (self._counts + host.to(self.device)).flatten()])

    def clear(self) -> None:
        """Forgets what was seen since the last step."""
        self._sums.zero_()
        self._counts.zero_()
        self._host_counts = [[0] * len(self.entries), [0] * len(self.entries)]

    def absorb(self, pending: Tensor, decay: float, about_running_mean: bool) -> None:
        """Moves mean and variance by what was seen; where nothing was, or nothing finite, they stay."""
        sums, counts = self._split(pending)
        first, second = sums / counts[0].clamp(min=1)[self._owner]
        broken = (~(first.isfinite() & second.isfinite())).to(first.dtype)
        broken = torch.zeros_like(counts[0]).index_add_(0, self._owner, broken)
        seen = ((counts[0] > 0) & (broken == 0))[self._owner]
        # h - new mean = (h - old mean) - shift
        shift = (1 - decay) * first
        batch = second - 2 * shift * first + shift.square() if about_running_mean else second - first.square()
        variance = decay * self.variance + (1 - decay) * batch.clamp(min=0)
        self.mean = torch.where(seen, self.mean + shift, self.mean)
        self.variance = torch.where(seen, variance, self.variance)

    def factors(
        self, pending: Tensor, relative_eps: float, eps: float, count_rows: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Means and floored variances per channel, q² per layer; neutral for layers that did not run."""
        _, (elements, rows) = self._split(pending)
        used = elements > 0
        largest = self.variance.new_zeros(self._groups).scatter_reduce_(0, self._group, self.variance, "amax")
        variance = self.variance + relative_eps * largest[self._group] + eps
        spread = used[self._owner]
        q2 = torch.ones_like(rows)
        if count_rows:
            q2 = torch.where(used, (self._fan_in / rows.clamp(min=1)).clamp(min=1), q2)
        return torch.where(spread, self.mean, 0.0), torch.where(spread, variance, 1.0), q2

    def copy_from(self, index: int, other: MomentBank, position: int) -> None:
        """Takes over a layer from another bank, unless that is on the meta device and knows nothing."""
        if other.device.type == "meta":
            return
        mine, theirs = self.place(index), other.place(position)
        self.mean[mine] = other.mean[theirs].to(self.mean)
        self.variance[mine] = other.variance[theirs].to(self.mean)
        self._sums[:, mine] = other._sums[:, theirs].to(self.mean)
        self._counts[:, index] = other._counts[:, position].to(self.mean)
        for own, given in zip(self._host_counts, other._host_counts, strict=True):
            own[index] = given[position]

    def _split(self, pending: Tensor) -> tuple[Tensor, Tensor]:
        total, layers = len(self.mean), len(self.entries)
        return pending[: 2 * total].view(2, total), pending[2 * total :].view(2, layers)
