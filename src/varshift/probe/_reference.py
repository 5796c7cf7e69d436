"""Compares a network with others that its weights come from: the source of an average, clients, parents."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from varshift.model import Norm, counterpart_norm, counterparts, same_values
from varshift.probe._reference_states import StateComparison, compare_states

_SAME_AVERAGE = 1e-4  # relative distance of averages that were taken in another order, or in half precision


@dataclass(frozen=True, slots=True)
class NormComparison:
    """The statistics of one norm against those of its counterparts in the references.

    Attributes:
        name: The norm.
        equal: Numbers of the references whose statistics are the same, to the bit.
        moved: Numbers of the references whose statistics are not those of a new norm.
        averaged: Whether its statistics are the average of those of all references, with the weights that
            its parameters were averaged with.
        pooled_ratio: Where they are: channel mean of the averaged variances over that of the pooled ones,
            which hold the spread of the means too.
        variance_ratio: Channel mean of the running variance of the nearest reference over its own.
        mean_offset: Root mean square over channels of the difference of the means, in standard deviations of
            that reference.
        counter: Batches that it counted, None where it does not count.
        reference_counter: The most that a reference counted, likewise.
        left: Whether its statistics stayed as they were while its weights followed the reference's and the
            reference's statistics moved: seen in a training that was watched.
        reference_variance: Mean over the references of the channel mean of their running variance: what the
            signal there varies by in them.
    """

    name: str
    equal: tuple[int, ...] = ()
    moved: tuple[int, ...] = ()
    averaged: bool = False
    pooled_ratio: float | None = None
    variance_ratio: float | None = None
    mean_offset: float | None = None
    counter: int | None = None
    reference_counter: int | None = None
    left: bool = False
    reference_variance: float | None = None


@dataclass(frozen=True, slots=True)
class References:
    """What other networks say about where weights and statistics come from; plain data.

    Attributes:
        classes: Class of each reference.
        differing: For each reference, the parameters of the network that have another value there or no
            counterpart, by name.
        distance: For each reference, the relative L2 distance of the weights (parameters of two dimensions
            and more) that have a counterpart.
        similarity: For each reference, the cosine between both sets of them.
        shares: Weights of the references in the average that comes nearest to the network's weights.
        residual: Relative L2 distance of its weights from that average.
        norms: The norms that have a counterpart, by name.
        states: State that belongs to the weights in another way, where it does not fit them.
        subject: What the network is called, where it is not the one that was checked or watched.
    """

    classes: tuple[str, ...]
    differing: tuple[frozenset[str], ...]
    distance: tuple[float, ...]
    similarity: tuple[float, ...]
    shares: tuple[float, ...] = ()
    residual: float = 0.0
    norms: Mapping[str, NormComparison] = field(default_factory=dict)
    states: tuple[StateComparison, ...] = ()
    subject: str = ""

    @property
    def is_average(self) -> bool:
        """Whether the weights are an average of several references, none of which they equal."""
        mixed = sum(share > _SAME_AVERAGE for share in self.shares) > 1
        return mixed and self.residual < _SAME_AVERAGE and abs(sum(self.shares) - 1) < 1e-2


def compare_networks(
    network: nn.Module, norms: Sequence[Norm], references: Sequence[nn.Module]
) -> References:
    """Compares parameters and statistics; nothing is run and nothing is written.

    Args:
        network: The network, unwrapped.
        norms: Its norms.
        references: The others, unwrapped.
    """
    pairs = [counterparts(network, reference) for reference in references]
    others = [dict(reference.named_parameters(remove_duplicate=False)) for reference in references]
    own = dict(network.named_parameters())
    matched: list[dict[str, Tensor]] = []
    for paths, theirs in zip(pairs, others, strict=True):
        found = {name: theirs.get(_renamed(name, paths)) for name in own}
        matched.append({n: t for n, t in found.items() if t is not None and _usable(own[n], t)})
    differing = tuple(
        frozenset(name for name, p in own.items() if name not in theirs or not same_values(p, theirs[name]))
        for theirs in matched
    )
    products = _Products(own, matched)
    shares, residual = products.average()
    compared = {
        norm.name: one
        for norm in norms
        if norm.readable and (one := _compare_norm(norm, pairs, references, shares)) is not None
    }
    return References(
        tuple(type(reference).__name__ for reference in references),
        differing,
        products.distances(),
        products.similarities(),
        shares,
        residual,
        compared,
        compare_states(network, references, pairs, shares),
    )


def _renamed(name: str, paths: Mapping[str, str]) -> str:
    owner, _, leaf = name.rpartition(".")
    if owner not in paths:
        return ""
    return f"{paths[owner]}.{leaf}" if paths[owner] else leaf


def _usable(own: Tensor, other: Tensor | None) -> bool:
    return other is not None and own.shape == other.shape and not (own.is_meta or other.is_meta)


class _Products:
    """Inner products of the parameters of a network and of its references, over what all of them have."""

    def __init__(self, own: Mapping[str, Tensor], matched: Sequence[Mapping[str, Tensor]]) -> None:
        count = len(matched)
        self._products = torch.zeros(count + 1, count + 1, dtype=torch.float64)
        self._squares = torch.zeros(count, dtype=torch.float64)  # of the differences from each reference
        names = [name for name in own if all(name in theirs for theirs in matched)]
        # Scales of norms are about 1 in every network, and would make all of them look alike.
        names = [name for name in names if own[name].dim() > 1] or names
        with torch.no_grad():
            for name in names:
                vectors = torch.stack([_flat(own[name]), *(_flat(theirs[name]) for theirs in matched)])
                self._products += vectors @ vectors.T
                self._squares += (vectors[1:] - vectors[0]).square().sum(1)

    def distances(self) -> tuple[float, ...]:
        scale = self._products.diagonal()[1:].clamp_min(1e-300)
        return tuple((self._squares / scale).sqrt().tolist())

    def similarities(self) -> tuple[float, ...]:
        norms = self._products.diagonal().sqrt().clamp_min(1e-300)
        return tuple((self._products[0, 1:] / (norms[0] * norms[1:])).tolist())

    def average(self) -> tuple[tuple[float, ...], float]:
        """The shares of the references in the nearest combination of them, and what is left."""
        gram, right = self._products[1:, 1:], self._products[0, 1:]
        if not bool(torch.isfinite(self._products).all()) or float(self._products[0, 0]) <= 0:
            return (), math.inf
        shares = torch.linalg.lstsq(gram, right[:, None], driver="gelsd").solution[:, 0]
        square = self._products[0, 0] - 2 * shares @ right + shares @ gram @ shares
        return tuple(shares.tolist()), float((square / self._products[0, 0]).clamp_min(0).sqrt())


def _flat(tensor: Tensor) -> Tensor:
    return tensor.detach().reshape(-1).to("cpu", torch.float64)


def _compare_norm(
    norm: Norm,
    pairs: Sequence[Mapping[str, str]],
    references: Sequence[nn.Module],
    shares: Sequence[float],
) -> NormComparison | None:
    found = [
        (number, other)
        for number, (paths, reference) in enumerate(zip(pairs, references, strict=True))
        if (other := counterpart_norm(norm, paths, reference)) is not None
        and other.readable
        and other.mean.shape == norm.mean.shape
        and other.spread.shape == norm.spread.shape
    ]
    if not found or norm.states.unsupported is not None:
        return None
    mean, variance = _flat(norm.mean), _flat(norm.var)
    others = [(_flat(other.mean), _flat(other.var)) for _, other in found]
    gaps = [_gap(mean, variance, *other) for other in others]
    nearest = min(gaps, key=lambda gap: abs(math.log(gap[0])) + gap[1])
    averaged, pooled = False, None
    if len(found) > 1 and len(shares) == len(found):
        averaged, pooled = _average(mean, variance, others, shares)
    counters = [value for _, other in found if (value := _counter(other)) is not None]
    return NormComparison(
        norm.name,
        tuple(number for number, other in found if _equal(norm, other)),
        tuple(number for number, other in found if not other.never_moved),
        averaged,
        pooled,
        nearest[0],
        nearest[1],
        _counter(norm),
        max(counters, default=None),
        reference_variance=sum(float(other.mean()) for _, other in others) / len(others),
    )


def _equal(one: Norm, other: Norm) -> bool:
    pairs = zip(one.own_states, other.own_states, strict=True)
    return all(same_values(mine.tensor, theirs.tensor) for mine, theirs in pairs)


def _gap(mean: Tensor, variance: Tensor, other_mean: Tensor, other_variance: Tensor) -> tuple[float, float]:
    """Ratio of the variances, other over own, and offset of the means in standard deviations of the other."""
    ratio = float(other_variance.mean() / variance.mean().clamp_min(1e-300))
    offset = float(((other_mean - mean).square() / other_variance.clamp_min(1e-12)).mean().sqrt())
    usable = math.isfinite(ratio) and ratio > 0 and math.isfinite(offset)
    return (ratio, offset) if usable else (1.0, 0.0)


def _average(
    mean: Tensor, variance: Tensor, others: Sequence[tuple[Tensor, Tensor]], shares: Sequence[float]
) -> tuple[bool, float | None]:
    weights = torch.tensor(shares, dtype=torch.float64)[:, None]
    means, variances = (torch.stack(several) for several in zip(*others, strict=True))
    mixed_mean, mixed_variance = (weights * means).sum(0), (weights * variances).sum(0)
    scale = mixed_variance.clamp_min(1e-12)
    same = bool(
        ((mean - mixed_mean).square() / scale).max().sqrt() < 10 * _SAME_AVERAGE
        and ((variance - mixed_variance).abs() / scale).max() < 10 * _SAME_AVERAGE
    )
    pooled = mixed_variance + (weights * (means - mixed_mean).square()).sum(0)
    return same, float(mixed_variance.mean() / pooled.mean().clamp_min(1e-300)) if same else None


def _counter(norm: Norm) -> int | None:
    counter = getattr(norm.module, "num_batches_tracked", None)
    return int(counter) if isinstance(counter, Tensor) and not counter.is_meta else None
