"""Scratch buffers and accumulators for many norms at once, laid flat so that a batch costs few operations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from varshift.model import Norm
from varshift.probe._moments import Moments, expand


class Bank:
    """The norms of one device and one statistics type: their scratch buffers and accumulators, laid flat.

    Attributes:
        norms: The norms.
        slices: Where each norm's channels lie, by name.
        moments: The accumulators.
        shared: Names of the norms that were called several times within one batch.
    """

    def __init__(
        self, norms: Sequence[Norm], device: torch.device, dtype: torch.dtype, *, average: bool, series: bool
    ) -> None:
        self.norms = tuple(norms)
        sizes = [norm.channels for norm in norms]
        offsets = [0]
        for size in sizes:
            offsets.append(offsets[-1] + size)
        self.slices = {
            norm.name: slice(a, b) for norm, a, b in zip(norms, offsets, offsets[1:], strict=False)
        }
        self.index = {norm.name: position for position, norm in enumerate(norms)}
        # Double precision is missing on some accelerators; there the sums are kept on the host.
        home = device if device.type != "mps" else torch.device("cpu")
        self.mean = torch.zeros(offsets[-1], dtype=dtype, device=device)
        self.var = torch.zeros_like(self.mean)
        self.channels = torch.tensor(sizes, device=home)
        self.counts = [0] * len(sizes)
        self.shared: set[str] = set()
        self._expanded: dict[tuple[int, ...], Tensor] = {}
        momentum = [
            0.1 if norm.momentum is None and norm.kind == "custom" else norm.momentum for norm in norms
        ]
        self.moments = Moments(
            offsets[-1],
            _per_channel([float("nan") if m is None else m for m in momentum], self.channels),
            _per_channel([0.0 if norm.kind == "instance" else 1.0 for norm in norms], self.channels),
            average=average,
            series=series,
        )

    def begin(self) -> None:
        """Starts a batch."""
        self.counts = [0] * len(self.counts)
        # A kernel blends with momentum 1, and zero times infinity is not zero: leave nothing behind.
        self.mean.zero_()
        self.var.zero_()

    def scratch(self, norm: Norm, count: int) -> tuple[Tensor, Tensor]:
        """The place for one call's mean and unbiased variance over `count` values per channel."""
        if self.counts[self.index[norm.name]]:  # a shared norm is called again within one batch
            self.shared.add(norm.name)
            self._flush_one(norm)
        self.counts[self.index[norm.name]] = count
        part = self.slices[norm.name]
        return self.mean[part], self.var[part]

    def _flush_one(self, norm: Norm) -> None:
        part, position = self.slices[norm.name], self.index[norm.name]
        home = self.channels.device
        count = torch.full((norm.channels,), float(self.counts[position]), dtype=torch.float64, device=home)
        self.moments.add(count, self.mean[part].to(home), self.var[part].to(home), part)
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
            self.moments.add(self._expanded[key], self.mean.to(home), self.var.to(home))
            self.counts = [0] * len(self.counts)


def _per_channel(values: Sequence[float], channels: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=channels.device).repeat_interleave(channels)
