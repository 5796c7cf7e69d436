"""Whether two epochs used the same batches, whatever their order."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from varshift._errors import DataError
from varshift.data._digest import digest, sample_digests


class BatchFingerprint:
    r"""The set of an epoch's batches, each as the set of its samples: 16 bytes per batch.

    Batch norm in training mode sees a partition of the samples into batches. Neither the order of the batches
    nor the order inside one matters to it, so neither matters here: two epochs have the same fingerprint
    when, and (but for collisions of a 128-bit hash) only when, they used the same batches.

    A batch is added as it comes from the loader, or by the ids of its samples. With random augmentation the
    contents of a sample change from epoch to epoch, so that only ids tell: let the data set return them.
    Values are compared, not their representation: the same numbers give the same fingerprint on every device
    and in every type that holds them exactly; whole numbers and fractions are kept apart.

    Args:
        key: Takes what identifies the samples out of a batch, for instance `lambda batch: batch["id"]`; by
            default everything in a batch that has one entry per sample counts, targets included.

    Reference: after Wu, Yun and Sra (ICML 2023), "On the training instability of shuffling SGD with batch
    normalization". That only the partition matters was derived from its definitions, not quoted.

    Example:
        >>> import torch
        >>> from varshift.data import BatchFingerprint
        >>> first = BatchFingerprint.of([torch.tensor([0, 1]), torch.tensor([2, 3])])
        >>> same = BatchFingerprint.of([[3, 2], [0, 1]])
        >>> other = BatchFingerprint.of([[0, 2], [1, 3]])
        >>> first.overlap(same), first.overlap(other)
        (1.0, 0.0)
    """

    def __init__(self, key: Callable[[Any], Any] | None = None) -> None:
        self.key = key
        self._batches: Counter[bytes] = Counter()
        self._sizes: Counter[int] = Counter()

    @classmethod
    def of(cls, batches: Iterable[Any], key: Callable[[Any], Any] | None = None) -> BatchFingerprint:
        """The fingerprint of all batches of a loader or list."""
        fingerprint = cls(key)
        for batch in batches:
            fingerprint.add(batch)
        return fingerprint

    def add(self, batch: Any) -> None:
        """Adds a batch.

        Raises:
            ValueError: If nothing in the batch has one entry per sample.
        """
        digests = sample_digests(batch if self.key is None else self.key(batch))
        self._batches[digest(*sorted(digests))] += 1
        self._sizes[len(digests)] += 1

    def merge(self, other: BatchFingerprint) -> None:
        """Adds the batches of another fingerprint, for instance of another process in the same epoch."""
        self._batches.update(other._batches)
        self._sizes.update(other._sizes)

    @property
    def samples(self) -> int:
        """Number of samples in all batches."""
        return sum(size * times for size, times in self._sizes.items())

    def overlap(self, other: BatchFingerprint) -> float:
        """The share of batches that both have, in [0, 1]: common batches over the larger number of batches.

        Raises:
            ValueError: If one of the two has no batches.
        """
        for name, one in (("this fingerprint", self), ("other", other)):
            if not len(one):
                raise DataError(f"{name} has no batches: add those of a whole epoch first.")
        common = (self._batches & other._batches).total()
        return common / max(len(self), len(other))

    def chance(self) -> float:
        r"""The overlap to expect between this epoch and a fresh random partition of its samples.

        A batch of size :math:`B` is one of the :math:`m_B` of its size again with probability
        :math:`m_B / \binom{n}{B}`. It is near 0 for all but toy data, and 1 where every partition is the
        same: batches of a single sample, or one batch of all.
        """
        if not len(self):
            raise DataError("this fingerprint has no batches: add those of a whole epoch first.")
        samples = self.samples
        expected = (
            times * min(1.0, times * math.exp(-_log_subsets(samples, size)))
            for size, times in self._sizes.items()
        )
        return math.fsum(expected) / len(self)

    def __len__(self) -> int:
        """Number of batches."""
        return self._batches.total()

    def __eq__(self, other: object) -> bool:
        """Whether the batches are the same."""
        return isinstance(other, BatchFingerprint) and self._batches == other._batches

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__}(batches={len(self)}, samples={self.samples})"


def _log_subsets(samples: int, size: int) -> float:
    """The logarithm of the number of subsets of a size."""
    return math.lgamma(samples + 1) - math.lgamma(size + 1) - math.lgamma(samples - size + 1)
