"""A data set that says which sample is which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.utils.data import Dataset

from varshift.data._epochs import sized


class IndexedDataset(Dataset[Any]):
    """A data set whose items are `(sample, index)`, so that batches carry the ids of their samples.

    Args:
        dataset: A map-style data set.

    Raises:
        ValueError: If it is empty or has no length.

    Example:
        >>> import torch
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> from varshift.data import IndexedDataset
        >>> data = TensorDataset(torch.rand(6, 3), torch.arange(6) % 2)
        >>> for (inputs, targets), ids in DataLoader(IndexedDataset(data), batch_size=3):
        ...     print(tuple(inputs.shape), targets.tolist(), ids.tolist())
        (3, 3) [0, 1, 0] [0, 1, 2]
        (3, 3) [1, 0, 1] [3, 4, 5]
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        sized("dataset", dataset)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """The sample and its index, counted from the front."""
        return self.dataset[index], index if index >= 0 else index + len(self)

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Any, int]]:
        """Several of them, in one go where the data set can do that."""
        many = getattr(self.dataset, "__getitems__", None)
        samples = many(indices) if many is not None else [self.dataset[index] for index in indices]
        return list(zip(samples, indices, strict=True))

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.dataset)
