"""Active Bias as a sampler: uncertain samples are drawn more often."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from varshift._arguments import count
from varshift.data._active_bias import ActiveBias
from varshift.data._epochs import generator_of
from varshift.data._shuffle import permutation
from varshift.data._shuffle_distributed import _DistributedShuffleSampler


class ActiveBiasSampler(_DistributedShuffleSampler):
    r"""Draws samples with replacement, sample :math:`i` with probability :math:`P(i) = u_i / \sum_j u_j`.

    The table of probabilities is made when an epoch begins, from the smoothed scores :math:`u` of an
    `ActiveBias`, and holds for that epoch: draws cost a search in the cumulated table, which gives the law
    of the alias method that the paper's notes propose. During the burn-in each epoch is a permutation, so
    that all histories fill; what the paper does there was not available. Samples that have no score yet are
    drawn with the average probability.

    For SGD-ISD, importance sampling by difficulty, multiply the losses by `importance_weights`,
    :math:`1 / (n P(i))`, which leaves the gradient unbiased.

    Drawing twice in a batch biases the statistics of batch norm, and running statistics follow the law of the
    sampler: estimate them anew on uniformly drawn batches before evaluation, or use weights.

    Among processes all draw the same sequence and each takes its share, as long as `ActiveBias.synchronise`
    was called before the epoch. Epochs count themselves, see `DistributedRandomReshuffleSampler`. The state
    holds the order of an epoch that is under way, so that it resumes exactly whatever the histories say by
    then.

    Args:
        bias: Where the scores come from; feed it in the training loop.
        num_samples: Number of draws in an epoch over all processes; by default as many as the data set has.
        num_replicas: Number of processes; by default of the process group, 1 without one.
        rank: Number of this process; by default in the process group, 0 without one.
        seed: Seed of all draws; the same in all processes.

    Raises:
        ValueError: If a number is outside its range; at the beginning of an epoch, if there are several
            processes and their histories were not synchronised.

    Reference: Chang, Learned-Miller and McCallum (NIPS 2017), "Active bias", the methods whose names begin
    with SGD-S, and SGD-ISD. Its text was not available: the names are confirmed, the formulas of the sampling
    variants are recalled.

    Example:
        >>> import torch
        >>> from varshift.data import ActiveBias, ActiveBiasSampler
        >>> bias = ActiveBias(4, score="difficulty", burn_in=0, smoothing=0.0)
        >>> for _ in range(2):
        ...     bias.record(torch.arange(4), probabilities=[1.0, 1.0, 0.5, 0.5])
        >>> sampler = ActiveBiasSampler(bias, num_samples=100)
        >>> set(sampler)
        {2, 3}
        >>> sampler.importance_weights([2, 3]).tolist()
        [0.5, 0.5]
    """

    def __init__(
        self,
        bias: ActiveBias,
        num_samples: int | None = None,
        num_replicas: int | None = None,
        rank: int | None = None,
        *,
        seed: int = 0,
    ) -> None:
        draws = bias.history.size if num_samples is None else count("num_samples", num_samples, 1)
        super().__init__(draws, num_replicas, rank, seed=seed)
        self.bias = bias
        self._drawn: tuple[int, Tensor, Tensor] | None = None  # epoch, order of all processes, probabilities

    def _indices(self, epoch: int) -> Tensor:
        if self._position == 0 or self._drawn is None or self._drawn[0] != epoch:
            if self.num_replicas > 1 and not self.bias.history.synchronised:
                raise ValueError(
                    "bias was not synchronised since it last recorded: the processes would draw from "
                    "different tables. Call bias.synchronise() on all of them at the end of each epoch."
                )
            table = self.bias.sampling_probabilities()
            self._drawn = (epoch, self._draw(table, epoch), table)
        return self._share(self._drawn[1])

    def _draw(self, table: Tensor, epoch: int) -> Tensor:
        draws, samples = self._samples(), len(table)
        if self.bias.burning_in:
            rounds = range(-(-draws // samples))
            seeds = [self.seed + (number << 32) for number in rounds]
            return torch.cat([permutation(samples, seed, epoch) for seed in seeds])[:draws]
        cumulated = table.cumsum(0)
        uniform = torch.rand(
            draws, generator=generator_of(self.seed, epoch), dtype=torch.float64, device="cpu"
        )
        places = torch.searchsorted(cumulated, uniform * cumulated[-1], right=True)
        # Rounding may carry a draw past the end; nothing of probability 0 may be drawn.
        return places.clamp(max=int(table.nonzero()[-1]))

    def probabilities(self) -> Tensor:
        """The table of the latest epoch; before the first one, what it would be now."""
        return self.bias.sampling_probabilities() if self._drawn is None else self._drawn[2].clone()

    def importance_weights(self, ids: Any) -> Tensor:
        r"""The weights :math:`1 / (n P(i))` of samples drawn in the latest epoch, in float32."""
        index = self.bias.history.index(ids)
        table = self.probabilities()
        device = ids.device if isinstance(ids, Tensor) else "cpu"
        return (1 / (len(table) * table[index.cpu()])).float().to(device)

    def state_dict(self, consumed: int | None = None) -> dict[str, Any]:
        """What is needed to go on exactly from here; the histories have a state of their own.

        Args:
            consumed: Number of this process's indices of the current epoch that training has used; by default
                those that were drawn (a DataLoader with workers draws ahead of training).
        """
        state = super().state_dict(consumed)
        if self._drawn is not None and state["position"] > 0 and self._drawn[0] == state["epoch"]:
            state.update(order=self._drawn[1].clone(), probabilities=self._drawn[2].clone())
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on where `state_dict` was taken, on any rank."""
        super().load_state_dict(state_dict)
        self._drawn = None
        if "order" in state_dict:
            self._drawn = (self.epoch, state_dict["order"].clone(), state_dict["probabilities"].clone())
