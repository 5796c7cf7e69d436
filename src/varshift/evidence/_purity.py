"""How much alike the samples of a batch are in their labels, or in fields that name a group."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from varshift.evidence._order_facts import Purity
from varshift.model import Call

_DRAWS = 24  # random partitions that say what chance would show


def classes(call: Call) -> list[Hashable] | None:
    """The class of every sample, None where targets are no classes."""
    target = call.targets
    if not isinstance(target, Tensor) or target.dim() == 0 or target.shape[0] != call.size:
        return None
    if target.dim() == 2 and target.shape[1] > 1 and _is_one_hot(target):
        return list(target.argmax(1).tolist())
    if target.numel() != call.size or target.is_complex():
        return None
    values = target.detach().reshape(-1)
    if values.is_floating_point() and not bool(((values == 0) | (values == 1)).all()):
        return None
    return list(values.tolist())


def _is_one_hot(target: Tensor) -> bool:
    return bool(((target == 0) | (target == 1)).all()) and bool((target.sum(1) == 1).all())


def groups(calls: Sequence[Call]) -> tuple[Purity, ...]:
    """Purity of the fields of a batch that hold one name or whole number per sample, targets aside."""
    if not calls:
        return ()
    found = []
    for name in _fields(calls[0].batch):
        columns = [_column(call, name) for call in calls]
        if any(column is None for column in columns):
            continue
        purity = purity_of(str(name), [column for column in columns if column is not None])
        if purity is not None and purity.values <= sum(call.size for call in calls) / 2:
            found.append(purity)
    return tuple(sorted(found, key=lambda one: -one.share))


def _fields(batch: Any) -> list[Any]:
    if isinstance(batch, Mapping):
        return [name for name in batch if "len" not in str(name).lower()]  # batches by length are no groups
    return list(range(len(batch))) if isinstance(batch, (tuple, list)) else []


def _column(call: Call, name: Any) -> list[Hashable] | None:
    try:
        value = call.batch[name]
    except (KeyError, IndexError):
        return None
    if value is call.targets:
        return None
    if isinstance(value, Tensor):
        whole = not (value.is_floating_point() or value.is_complex() or value.dtype is torch.bool)
        return list(value.tolist()) if whole and value.dim() == 1 and len(value) == call.size else None
    named = isinstance(value, (list, tuple)) and len(value) == call.size
    return list(value) if named and all(isinstance(item, (str, int)) for item in value) else None


def purity_of(
    name: str, batches: Sequence[Sequence[Hashable]], elsewhere: Sequence[Hashable] | None = None
) -> Purity | None:
    """Purity of the batches of two samples and more, next to that of random batches of the same samples.

    Args:
        name: Name of the label or group.
        batches: The value of every sample, batch by batch.
        elsewhere: Values at random places of the data set to compare with, by default those of the batches.
    """
    batches = [batch for batch in batches if len(batch) > 1]
    if len(batches) < 2:
        return None
    codes = {value: code for code, value in enumerate(dict.fromkeys(v for b in batches for v in b))}
    for value in elsewhere or ():
        codes.setdefault(value, len(codes))
    pool = [codes[value] for value in elsewhere or [value for batch in batches for value in batch]]
    sizes = [len(batch) for batch in batches]
    values = torch.tensor(pool, device="cpu")
    generator = torch.Generator().manual_seed(0)
    draws = []
    for _ in range(_DRAWS):
        if elsewhere is None:
            chosen = values[torch.randperm(len(values), generator=generator, device="cpu")]
        else:
            chosen = values[torch.randint(len(values), (sum(sizes),), generator=generator, device="cpu")]
        draws.append(statistics.fmean(_commonest(part.tolist()) for part in chosen.split(sizes)))
    share = statistics.fmean(_commonest(batch) for batch in batches)
    chance = statistics.fmean(draws)
    return Purity(name, share, chance, statistics.stdev(draws), len(codes), elsewhere is not None)


def _commonest(values: Sequence[Hashable]) -> float:
    return Counter(values).most_common(1)[0][1] / len(values)
