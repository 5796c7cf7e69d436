"""Scratch buffers and accumulators for many norms at once, laid flat so that a batch costs few operations."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from varshift.model import Norm
from varshift.probe._moments import Moments, expand


class Bank:
    """The norms of one device and one statistics type: their scratch buffers and accumulators, laid flat.

    Attributes:
        norms: The norms.
        slices: Where each norm's statistics lie, by name, one row after another.
        moments: The accumulators.
        rest: Accumulators of the batches that are not held back, None where none are.
        shared: Names of the norms that were called several times within one batch.
    """

    def __init__(
        self,
        norms: Sequence[Norm],
        device: torch.device,
        dtype: torch.dtype,
        *,
        average: bool,
        series: bool,
        holds_back: bool = False,
    ) -> None:
        self.norms = tuple(norms)
        rows = [(norm, row) for norm in norms for row in range(norm.rows)]
        sizes = [norm.channels for norm, _ in rows]
        offsets = [0]
        for size in sizes:
            offsets.append(offsets[-1] + size)
        self._rows = {(norm.name, row): position for position, (norm, row) in enumerate(rows)}
        self._parts = [slice(a, b) for a, b in pairwise(offsets)]
        self.slices = {
            norm.name: slice(self._part(norm, 0).start, self._part(norm, norm.rows - 1).stop)
            for norm in norms
        }
        # Double precision is missing on some accelerators; there the sums are kept on the host.
        home = device if device.type != "mps" else torch.device("cpu")
        self.mean = torch.zeros(offsets[-1], dtype=dtype, device=device)
        self.var = torch.zeros_like(self.mean)
        self.channels = torch.tensor(sizes, device=home)
        self.counts = [0] * len(sizes)
        self.shared: set[str] = set()
        self._expanded: dict[tuple[int, ...], Tensor] = {}
        momentum = [
            0.1 if norm.momentum is None and norm.kind == "custom" else norm.momentum for norm, _ in rows
        ]
        weights = _per_channel([float("nan") if m is None else m for m in momentum], self.channels)
        between = _per_channel([0.0 if norm.per_sample else 1.0 for norm, _ in rows], self.channels)
        self.moments = Moments(offsets[-1], weights, between, average=average, series=series)
        self.rest = (
            Moments(offsets[-1], weights, between, average=average, series=False) if holds_back else None
        )
        self._held = False

    def begin(self, *, held: bool = False) -> None:
        """Starts a batch; one that is held back does not join `rest`."""
        self._held = held
        self.counts = [0] * len(self.counts)
        # A kernel blends with momentum 1, and zero times infinity is not zero: leave nothing behind.
        self.mean.zero_()
        self.var.zero_()

    def scratch(self, norm: Norm, count: int, row: int = 0) -> tuple[Tensor, Tensor]:
        """The place for one call's mean and unbiased variance over `count` values per channel of a row."""
        position = self._rows[norm.name, row]
        if self.counts[position]:  # a shared norm is called again within one batch
            self.shared.add(norm.name)
            self._flush_one(norm, position)
        self.counts[position] = count
        part = self._parts[position]
        return self.mean[part], self.var[part]

    def position(self, norm: Norm, row: int = 0) -> int:
        """Where in `counts` a row of a norm's statistics is."""
        return self._rows[norm.name, row]

    def _part(self, norm: Norm, row: int) -> slice:
        return self._parts[self._rows[norm.name, row]]

    def _flush_one(self, norm: Norm, position: int) -> None:
        part = self._parts[position]
        home = self.channels.device
        count = torch.full((norm.channels,), float(self.counts[position]), dtype=torch.float64, device=home)
        self._add(count, self.mean[part].to(home), self.var[part].to(home), part)
        self.mean[part].zero_()
        self.var[part].zero_()
        self.counts[position] = 0

    def end(self) -> None:
        """Ends a batch: what the scratch buffers hold joins the accumulators."""
        if any(self.counts):
            key = tuple(self.counts)
            if key not in self._expanded:
                self._expanded = {key: expand(key, self.channels)}  # the same for all batches but the last
            home = self.channels.device
            self._add(self._expanded[key], self.mean.to(home), self.var.to(home))
            self.counts = [0] * len(self.counts)

    def _add(self, count: Tensor, mean: Tensor, var: Tensor, part: slice = slice(None)) -> None:
        self.moments.add(count, mean, var, part)
        if self.rest is not None and not self._held:
            self.rest.add(count, mean, var, part)


def _per_channel(values: Sequence[float], channels: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=channels.device).repeat_interleave(channels)
