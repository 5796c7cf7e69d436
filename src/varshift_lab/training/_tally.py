"""Losses and hits of an epoch, kept on the device until it is over."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class Tally:
    """What the steps of an epoch add up to; to add a step waits for nothing."""

    def __init__(self) -> None:
        self._losses: list[Tensor] = []
        self._hits: list[Tensor] = []
        self._sizes: list[int] = []

    def add(self, loss: Tensor, outputs: Tensor, labels: Tensor) -> None:
        """Adds a step."""
        self._losses.append(loss.detach())
        self._hits.append((outputs.detach().argmax(1) == labels).sum())
        self._sizes.append(len(labels))

    def close(self, fabric: Fabric) -> tuple[float, float, int]:
        """Mean loss over the samples of all processes, share of errors in %, and number of samples.

        This is where the device is waited for.
        """
        losses, hits = torch.stack(self._losses).float().cpu(), torch.stack(self._hits).sum().cpu()
        sizes = torch.tensor(self._sizes, dtype=torch.float64)
        totals = torch.stack([losses.double() @ sizes, hits.double(), sizes.sum()])
        if fabric.world_size > 1:
            shared = fabric.all_reduce(totals.to(fabric.device), reduce_op="sum")
            totals = torch.as_tensor(shared).cpu()
        self._losses = list(losses)
        loss, right, samples = totals.tolist()
        return loss / samples, 100 * (1 - right / samples), round(samples)

    def first_bad(self) -> str:
        """Where the first loss that is not finite was, after `close`; empty if there was none here."""
        for step, loss in enumerate(self._losses, 1):
            if not math.isfinite(loss):
                return f", first in step {step} of {len(self._losses)}"
        return ""
