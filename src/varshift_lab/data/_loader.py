"""Batches of tensors that are in memory already."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset


def tensor_loader(
    images: Tensor,
    labels: Tensor,
    batch_size: int,
    *,
    shuffle: bool = False,
    drop_last: bool = False,
    seed: int = 0,
) -> DataLoader[Any]:
    """Batches of ``(images, labels)``.

    Args:
        images: ``(N, ...)``.
        labels: ``(N,)``.
        batch_size: Samples per batch, at least 1.
        shuffle: Draw a new order in every epoch, from a generator of its own.
        drop_last: Leave out a last batch that is not full.
        seed: Seed of the order.

    Raises:
        ValueError: If there are no images, the lengths differ, the batch size is below 1, or no full batch
            is left.
    """
    if len(images) != len(labels) or len(images) == 0:
        raise ValueError(
            f"images has {len(images)} and labels {len(labels)} entries: they must be as many, not 0."
        )
    if batch_size < 1 or (drop_last and batch_size > len(images)):
        raise ValueError(f"batch_size={batch_size!r} must be between 1 and the {len(images)} images.")
    return DataLoader(
        TensorDataset(images, labels),
        batch_size=batch_size,
        shuffle=shuffle,
        drop_last=drop_last,
        generator=torch.Generator().manual_seed(seed),
    )
