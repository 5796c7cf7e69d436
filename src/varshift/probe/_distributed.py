"""Statistics that several processes share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from varshift.probe._moments import Pool, merge


class Ranks:
    """The processes that pool their statistics; a single process when nothing is distributed.

    Args:
        group: A process group; None for the default group where one exists.
    """

    def __init__(self, group: Any = None) -> None:
        self._group = group
        self.active = dist.is_available() and dist.is_initialized() and dist.get_world_size(group) > 1
        self.size = dist.get_world_size(group) if self.active else 1

    def _home(self) -> torch.device:
        nccl = dist.get_backend(self._group) == "nccl"
        return torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")

    def gather(self, values: Tensor) -> list[Tensor]:
        """Every process's tensor, in the order of their ranks, on the host."""
        if not self.active:
            return [values.cpu()]
        mine = values.detach().to(self._home()).contiguous()
        parts = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(parts, mine, group=self._group)
        return [part.cpu() for part in parts]

    def flags(self, *mine: bool) -> list[list[bool]]:
        """Every process's flags: one list per process."""
        return [
            [bool(x) for x in row] for row in self.gather(torch.tensor(mine, dtype=torch.int64, device="cpu"))
        ]

    def pooled(self, pool: Pool, between: Tensor) -> Pool:
        """The pool over all processes, merged in the order of ranks so that each gets the same bits."""
        if not self.active:
            return pool
        rows = self.gather(torch.stack([pool.count, pool.mean, pool.squares]))
        pools = [Pool(row[0], row[1], row[2]) for row in rows]
        return fold(pools, between.cpu())


def fold(pools: Sequence[Pool], between: Tensor) -> Pool:
    """Merges several pools from first to last."""
    whole = pools[0]
    for pool in pools[1:]:
        whole = merge(whole, pool, between)
    return whole
