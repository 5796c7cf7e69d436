"""Rows of several processes, brought together."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def shared_by_several(group: Any) -> bool:
    """Whether there is a process group of more than one process."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size(group) > 1


def gather_rows(rows: Tensor, group: Any) -> list[Tensor]:
    """Every process's rows, in the order of ranks; the processes may have different numbers of rows."""
    nccl = dist.get_backend(group) == "nccl"
    home = torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")
    mine = rows.to(home).contiguous()
    length = torch.tensor([len(mine)], dtype=torch.int64, device=home)
    lengths = [torch.empty_like(length) for _ in range(dist.get_world_size(group))]
    dist.all_gather(lengths, length, group=group)
    sizes = [int(size) for size in lengths]
    padded = mine.new_zeros(max(sizes), *mine.shape[1:])
    padded[: len(mine)] = mine
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded, group=group)
    return [part[:size] for part, size in zip(parts, sizes, strict=True)]
