"""The shuffled orders, shared out over the processes of a data-parallel run."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DistributedSampler

from varshift._arguments import count
from varshift.data._epochs import EpochSampler, sized, whole_seed
from varshift.data._shuffle import permutation


def replicas_and_rank(num_replicas: int | None, rank: int | None) -> tuple[int, int]:
    """Both numbers, by default of the process group; a process alone where there is none."""
    grouped = dist.is_available() and dist.is_initialized()
    if num_replicas is None:
        num_replicas = dist.get_world_size() if grouped else 1
    if rank is None:
        rank = dist.get_rank() if grouped else 0
    num_replicas, rank = count("num_replicas", num_replicas, 1), count("rank", rank, 0)
    if rank >= num_replicas:
        raise ValueError(f"rank={rank} must be below num_replicas={num_replicas}.")
    return num_replicas, rank


class _DistributedShuffleSampler(EpochSampler, DistributedSampler[int]):
    """One process's share of a permutation; a DistributedSampler, so that frameworks leave it in place."""

    def __init__(
        self,
        dataset: Sized | int,
        num_replicas: int | None = None,
        rank: int | None = None,
        *,
        seed: int = 0,
        drop_last: bool = False,
    ) -> None:
        source: Any = sized("dataset", dataset)
        num_replicas, rank = replicas_and_rank(num_replicas, rank)
        if drop_last and len(source) < num_replicas:
            raise ValueError(
                f"dataset has {len(source)} samples for num_replicas={num_replicas}: with drop_last=True no "
                "process would get any. Use fewer processes or drop_last=False."
            )
        DistributedSampler.__init__(
            self, source, num_replicas, rank, shuffle=True, seed=whole_seed(seed), drop_last=bool(drop_last)
        )

    def _samples(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def _share(self, order: Tensor) -> Tensor:
        """Every `num_replicas`-th index, after padding with the front or cutting the end, as torch does."""
        repeats = -(-self.total_size // len(order))
        padded = order.repeat(repeats) if repeats > 1 else order
        return padded[: self.total_size][self.rank :: self.num_replicas]

    def __iter__(self) -> Any:
        """The indices of this process in the next epoch."""
        return EpochSampler.__iter__(self)

    def __len__(self) -> int:
        return self.num_samples

    def state_dict(self, consumed: int | None = None) -> dict[str, Any]:
        """What is needed to go on exactly from here; the same for all ranks.

        Args:
            consumed: Number of this process's indices of the current epoch that training has used; by default
                those that were drawn (a DataLoader with workers draws ahead of training).
        """
        return {**EpochSampler.state_dict(self, consumed), "num_replicas": self.num_replicas}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on where `state_dict` was taken, on any rank.

        Raises:
            ValueError: If it was taken with another number of samples, or inside an epoch that was shared out
                over another number of processes.
        """
        saved = state_dict.get("num_replicas", self.num_replicas)
        if state_dict.get("position") and saved != self.num_replicas:
            raise ValueError(
                f"state_dict was taken inside an epoch of {saved} processes and there are "
                f"{self.num_replicas}: that place has no meaning here. Resume with {saved} processes, or "
                "from the beginning of an epoch: {**state_dict, 'position': 0}."
            )
        EpochSampler.load_state_dict(self, state_dict)


class DistributedRandomReshuffleSampler(_DistributedShuffleSampler):
    """Random reshuffling over processes: a new epoch is a new order without anyone calling `set_epoch`.

    Torch's DistributedSampler repeats the same batches in every epoch until `set_epoch` is called, which with
    batch norm is the fault that `SingleShuffleSampler` describes. This one counts epochs by itself. The order
    follows from the seed and the epoch, so that ranks agree without talking, as long as they begin equally
    many epochs (iterators of which something was drawn). `set_epoch` is there, for loops that call it and for
    starting in the middle of a run.

    The samples are shared out as by torch: the order is padded with its own beginning, or with `drop_last`
    cut, until all processes get equally many; process `rank` takes every `num_replicas`-th index.

    Args:
        dataset: The data set, or the number of its samples.
        num_replicas: Number of processes; by default of the process group, 1 without one.
        rank: Number of this process; by default in the process group, 0 without one.
        seed: Seed of all orders; the same in all processes.
        drop_last: Whether to drop the tail of the order instead of padding it.

    Raises:
        ValueError: If the data set is empty or has no length, no process would get a sample, or
            the rank is not below the number of processes.

    Reference: Wu, Yun and Sra (ICML 2023), "On the training instability of shuffling SGD with batch
    normalization", arXiv 2302.12444.

    Example:
        >>> from varshift.data import DistributedRandomReshuffleSampler
        >>> ranks = [DistributedRandomReshuffleSampler(10, num_replicas=2, rank=r) for r in (0, 1)]
        >>> first = [list(sampler) for sampler in ranks]
        >>> sorted(first[0] + first[1])
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
        >>> [list(sampler) for sampler in ranks] == first
        False
    """

    def _indices(self, epoch: int) -> Tensor:
        return self._share(permutation(self._samples(), self.seed, epoch))


class DistributedSingleShuffleSampler(_DistributedShuffleSampler):
    """Single shuffle over processes: each process has the same batches in every epoch.

    What torch's DistributedSampler does when nobody calls `set_epoch`, on purpose; see `SingleShuffleSampler`
    for what it does to batch norm. `set_epoch` is accepted and does not change the order.

    Args:
        dataset: The data set, or the number of its samples.
        num_replicas: Number of processes; by default of the process group, 1 without one.
        rank: Number of this process; by default in the process group, 0 without one.
        seed: Seed of the order; the same in all processes.
        drop_last: Whether to drop the tail of the order instead of padding it.

    Raises:
        ValueError: If the data set is empty or has no length, no process would get a sample, or
            the rank is not below the number of processes.

    Example:
        >>> from varshift.data import DistributedSingleShuffleSampler
        >>> sampler = DistributedSingleShuffleSampler(100, num_replicas=2, rank=0)
        >>> list(sampler) == list(sampler)
        True
    """

    def _indices(self, epoch: int) -> Tensor:
        return self._share(permutation(self._samples(), self.seed, 0))
