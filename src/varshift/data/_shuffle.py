"""The two orders of shuffled training: one permutation for ever, or a fresh one each epoch."""

from __future__ import annotations

from collections.abc import Sized

import torch
from torch import Tensor

from varshift.data._epochs import EpochSampler, generator_of, seed_of, sized


def permutation(samples: int, seed: int, epoch: int) -> Tensor:
    """A permutation of the samples that depends on nothing but its arguments."""
    return torch.randperm(samples, generator=generator_of(seed, epoch), device="cpu")


class _ShuffleSampler(EpochSampler):
    """A permutation of a whole data set."""

    def __init__(
        self, data_source: Sized | int, *, seed: int | None = None, generator: torch.Generator | None = None
    ) -> None:
        self.data_source = sized("data_source", data_source)
        self.seed = seed_of(seed, generator)

    def _samples(self) -> int:
        return len(self.data_source)

    def __len__(self) -> int:
        return self._samples()


class RandomReshuffleSampler(_ShuffleSampler):
    r"""Random reshuffling: a fresh permutation :math:`\pi_k` of all samples in every epoch :math:`k`.

    This is what `DataLoader(shuffle=True)` does, with an order that depends on nothing but the seed and the
    number of the epoch, so that a run can be resumed exactly. Under it, a net with batch norm minimises the
    average of the risks :math:`L_\pi` over all permutations, not the risk of one fixed partition.

    The number of the epoch counts itself: each new iterator is a new epoch, begun when its first index is
    drawn. Several iterators may be alive at once; each is an epoch of its own.

    Args:
        data_source: The data set, or the number of its samples. Its length is read anew in each epoch.
        seed: Seed of all orders; by default one drawn, now, from `generator`.
        generator: Where to draw the seed from when none is given; None for torch's default generator, so that
            `torch.manual_seed` decides.

    Raises:
        ValueError: If the data set is empty or has no length, or both a seed and a generator are given.

    Reference: Wu, Yun and Sra (ICML 2023), "On the training instability of shuffling SGD with batch
    normalization", arXiv 2302.12444 (RR).

    Example:
        >>> from torch.utils.data import DataLoader
        >>> from varshift.data import RandomReshuffleSampler
        >>> data = list("abcdef")
        >>> loader = DataLoader(data, batch_size=2, sampler=RandomReshuffleSampler(data, seed=0))
        >>> first, second = list(loader), list(loader)
        >>> first == second
        False
        >>> sorted(sum(first, [])) == sorted(sum(second, [])) == data
        True
    """

    def _indices(self, epoch: int) -> Tensor:
        return permutation(self._samples(), self.seed, epoch)


class SingleShuffleSampler(_ShuffleSampler):
    r"""Single shuffle: one permutation :math:`\pi`, drawn once, in every epoch.

    With batch norm in training mode this is a fault, and this class is here to show it and to test for it:
    the batches are the same in every epoch, so that training minimises the risk :math:`L_\pi` of that
    partition, which may fall while the risk that the user means diverges. To train, take
    `RandomReshuffleSampler`.

    Only the partition into batches matters: fixed batches in an order that changes are single shuffle, still.
    The order is drawn anew from the seed in each epoch, so that nothing of the size of the data is kept.

    Args:
        data_source: The data set, or the number of its samples. Its length is read anew in each epoch.
        seed: Seed of the order; by default one drawn, now, from `generator`.
        generator: Where to draw the seed from when none is given; None for torch's default generator.

    Raises:
        ValueError: If the data set is empty or has no length, or both a seed and a generator are given.

    Reference: Wu, Yun and Sra (ICML 2023), "On the training instability of shuffling SGD with batch
    normalization", arXiv 2302.12444 (SS).

    Example:
        >>> from varshift.data import SingleShuffleSampler
        >>> sampler = SingleShuffleSampler(100, seed=0)
        >>> first, second = list(sampler), list(sampler)
        >>> first == second, first == sorted(first)
        (True, False)
    """

    def _indices(self, epoch: int) -> Tensor:
        return permutation(self._samples(), self.seed, 0)
