"""What a loader says about the composition of its batches, from its samplers alone."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Hashable, Iterable
from itertools import islice
from typing import Any

from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

_INDICES = 500_000  # of an epoch; a longer one is not gone through
_SHUFFLING = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)


def shuffles(loader: Any) -> bool | None:
    """Whether a loader draws its samples in random order, None where its sampler does not say."""
    if not isinstance(loader, DataLoader) or loader.batch_sampler is None:
        return None
    sampler = getattr(loader.batch_sampler, "sampler", None)
    if type(loader.batch_sampler) is not BatchSampler or sampler is None:
        return None
    if isinstance(sampler, DistributedSampler):
        return bool(sampler.shuffle)
    if type(sampler) in _SHUFFLING:
        return True
    return False if type(sampler) is SequentialSampler else None


def is_map_style(loader: Any) -> bool:
    """Whether single samples of a loader can be had by their index."""
    return (
        isinstance(loader, DataLoader)
        and loader.batch_sampler is not None
        and hasattr(loader.dataset, "__getitem__")
        and hasattr(loader.dataset, "__len__")
    )


def epochs(loader: Any) -> tuple[float | None, bool | None]:
    """Share of batches that two epochs have in common, and whether their order differs.

    Only indices are drawn, from a copy of the sampler, so that nothing is loaded and the user's sampler stays
    where it is. Plain samplers of torch need not be asked. A set of whole numbers is hashed by Python itself:
    a data set of a million samples would take minutes with digests of their contents.
    """
    if isinstance(loader, (list, tuple)):
        return 1.0, False
    if not isinstance(loader, DataLoader) or loader.batch_sampler is None:
        return None, None
    random_order = shuffles(loader)
    if random_order is not None:
        return (0.0, True) if random_order else (1.0, False)
    sampler: Any = loader.batch_sampler
    if not isinstance(sampler, (Sampler, BatchSampler, list, tuple)):
        return None, None
    try:
        sampler = copy.deepcopy(sampler, {id(loader.dataset): loader.dataset})
    except Exception:  # whatever a sampler of the user's holds
        return None, None
    first, second = (_hashes(sampler) for _ in range(2))
    if not first or not second:
        return None, None
    common = (Counter(first) & Counter(second)).total()
    return common / max(len(first), len(second)), first != second


def _hashes(batches: Iterable[Any]) -> list[int] | None:
    """One number for each batch of an epoch, whatever the order inside; None for a very long epoch."""
    found, indices = [], 0
    for batch in islice(batches, _INDICES):
        items = list(batch) if not isinstance(batch, (list, tuple)) else batch
        indices += len(items)
        if indices > _INDICES or not all(isinstance(item, Hashable) for item in items):
            return None
        found.append(hash(frozenset(items)))
    return found
