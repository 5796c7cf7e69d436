"""The results of two passes sample by sample: the same sample in batches of other sizes or lengths."""

from __future__ import annotations

import torch
from torch import Tensor


def sample_distance(
    one: Tensor, size: int, other: Tensor, other_size: int, rows: tuple[int, int]
) -> float | None:
    """Distance of one sample's part of two results of an operation, relative to the size of such a part.

    The samples' dimension is where the shapes differ as the sizes of the batches do; a dimension in which
    samples and steps were joined counts, in either order. What one result is longer by elsewhere is padding.

    Args:
        one: A result in a batch of `size` samples.
        size: See `one`.
        other: The result of the same operation in a batch of another number of samples.
        other_size: See `other`.
        rows: The sample's number in either batch.

    Returns:
        The largest distance is 0 for equal parts; None where no dimension belongs to the samples.
    """
    if one.dim() != other.dim() or one.is_nested or other.is_nested:
        return None
    axes = [
        axis
        for axis, (a, b) in enumerate(zip(one.shape, other.shape, strict=True))
        if a != b and a % size == 0 and b % other_size == 0 and a // size == b // other_size
    ]
    if len(axes) != 1:
        return None  # none, or pairs of samples
    axis = axes[0]
    values = [t.detach().movedim(axis, 0) for t in (one, other)]
    folded = values[0].shape[0] // size
    parts = []
    for value, count, row in zip(values, (size, other_size), rows, strict=True):
        after = value.unflatten(0, (count, folded))[row]
        before = value.unflatten(0, (folded, count))[:, row]
        parts.append((after, before))
    scale = _norm(values[0]) / size**0.5
    return min(_distance(a, b, scale) for a, b in zip(*parts, strict=True))


def overlap_distance(one: Tensor, other: Tensor) -> float | None:
    """Distance of two results where they overlap, relative to the size of the first there."""
    if one.dim() != other.dim() or one.is_nested or other.is_nested:
        return None
    return _distance(one.detach(), other.detach(), None)


def _distance(one: Tensor, other: Tensor, scale: float | None) -> float:
    shape = [slice(min(sizes)) for sizes in zip(one.shape, other.shape, strict=True)]
    one, other = one[tuple(shape)].double(), other[tuple(shape)].double()
    if one.numel() == 0:
        return 0.0
    difference = torch.where(one == other, 0.0, one - other)
    if not bool(torch.isfinite(difference).all()):
        both = torch.isnan(one) & torch.isnan(other)
        if not bool((both | torch.isfinite(difference)).all()):
            return float("inf")  # finite in one pass only
        difference = difference.nan_to_num()
    norm = max(_norm(one), scale or 0.0)
    return _norm(difference) / norm if norm > 0 else (0.0 if _norm(difference) == 0 else float("inf"))


def _norm(value: Tensor) -> float:
    return float(torch.linalg.vector_norm(value.double().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)))
