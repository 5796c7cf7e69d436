"""Pools the running statistics of several networks: clients of a federated round, parents of a merge."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from varshift._errors import VarshiftError
from varshift.model import Norm, find_norms, network_of
from varshift.probe._moments import Pool, merge

_MEAN, _VARIANCE, _COUNTER = "running_mean", "running_var", "num_batches_tracked"


@dataclass(frozen=True, slots=True)
class _Statistics:
    """Mean, variance and counter of one norm, and how to write pooled ones down."""

    mean: Tensor
    variance: Tensor
    counter: Tensor | None
    names: tuple[str, str, str]
    norm: Norm | None = None


def merge_statistics(
    states: Sequence[nn.Module | Mapping[str, Tensor]], counts: Sequence[float]
) -> dict[str, Tensor]:
    """Pools the running statistics of several networks, as if one network had seen the data of all of them.

    With n values behind the statistics of each network and N of all, Chan's rule gives per channel::

        mean = sum(n_i * mean_i) / N
        var = (sum((n_i - 1) * var_i) + sum(n_i * (mean_i - mean) ** 2)) / (N - 1)

    The last sum, the spread of the means, is what an average of variances leaves out: clients with other data
    differ in their means, and a variance without it is too small. Running variances are unbiased estimates,
    and the pooled one is unbiased, too; for large counts this is the weighted mean of the variances plus the
    spread. Statistics of an instance norm, which normalises each sample by itself, are averaged without it.

    The sums are taken in float64. Nothing is written to a network, and weights are not looked at: pooled
    statistics are those of the average of the networks only as far as their weights are alike, so
    `varshift.recalibrate` on data is better where there are any.

    Args:
        states: Networks that were built alike, or their state dicts: statistics go by the names that torch's
            norms give them. Only of networks is known which norms are instance norms.
        counts: Number of values of a channel behind the statistics of each network, more than 1. For
            images that is samples times positions; only their ratios matter much.

    Returns:
        The pooled buffers by their names, in the dtype and on the device of the first network's; counters of
        batches are added up. ``model.load_state_dict(pooled, strict=False)`` takes them.

    Raises:
        VarshiftError: If a network has other norms or shapes than the first, there are no statistics, or
            `counts` does not fit.

    Example:
        >>> import torch
        >>> first, second = torch.nn.BatchNorm1d(1), torch.nn.BatchNorm1d(1)
        >>> _ = first.running_mean.fill_(-1.0), second.running_mean.fill_(1.0)
        >>> pooled = merge_statistics([first, second], counts=[5001, 5001])
        >>> [round(value.item(), 3) for value in pooled.values()]
        [0.0, 2.0, 0]
    """
    sizes = _sizes(states, counts)
    several = [_statistics(state, number) for number, state in enumerate(states)]
    first = several[0]
    if not first:
        raise VarshiftError(
            f"states[0] has no running statistics: state dicts need names ending in {_MEAN} and {_VARIANCE}."
        )
    for number, other in enumerate(several[1:], 1):
        _compare(first, other, number)
    pooled: dict[str, Tensor] = {}
    for name, own in first.items():
        ones = [statistics[name] for statistics in several]
        mean, variance = _pool([(one.mean, one.variance) for one in ones], sizes, own.norm)
        pooled.update(_written(own, mean, variance))
        counters = [one.counter for one in ones]
        if own.counter is not None and all(counter is not None for counter in counters):
            total = sum(int(counter) for counter in counters if counter is not None)
            pooled[own.names[2]] = torch.full_like(own.counter, total)
    return pooled


def _sizes(states: Sequence[object], counts: Sequence[float]) -> list[float]:
    if isinstance(states, (nn.Module, Mapping)) or not len(states):
        raise VarshiftError(f"states={type(states).__name__} must be a list of networks or state dicts.")
    sizes = [float(count) for count in counts]
    if len(sizes) != len(states):
        raise VarshiftError(f"counts has {len(sizes)} numbers for {len(states)} states: one for each.")
    for number, size in enumerate(sizes):
        if not math.isfinite(size) or size <= 1:
            raise VarshiftError(
                f"counts[{number}]={counts[number]!r} must be more than 1: the number of values behind the "
                "statistics, not a share of them."
            )
    return sizes


def _statistics(state: nn.Module | Mapping[str, Tensor], number: int) -> dict[str, _Statistics]:
    """The statistics of a network by the name of the norm."""
    if isinstance(state, nn.Module):
        network = network_of(state, argument=f"states[{number}]")
        return {norm.name: _of_norm(norm) for norm in find_norms(network) if _usable(norm)}
    if not isinstance(state, Mapping):
        raise VarshiftError(f"states[{number}] is a {type(state).__name__}: pass a network or a state dict.")
    found = {}
    for name, mean in state.items():
        path, _, leaf = name.rpartition(".")
        names = tuple(f"{path}.{one}" if path else one for one in (_MEAN, _VARIANCE, _COUNTER))
        if leaf == _MEAN and isinstance(mean, Tensor) and names[1] in state:
            found[path] = _Statistics(mean, state[names[1]], state.get(names[2]), (name, names[1], names[2]))
    return found


def _usable(norm: Norm) -> bool:
    return norm.readable and norm.states.unsupported is None


def _of_norm(norm: Norm) -> _Statistics:
    path = norm.name.partition("#")[0]
    counter = getattr(norm.module, _COUNTER, None)
    names = (norm.states.mean or "", norm.states.spread or "", f"{path}.{_COUNTER}" if path else _COUNTER)
    return _Statistics(
        norm.mean.detach(),
        norm.var.detach(),
        counter.detach() if isinstance(counter, Tensor) else None,
        names,
        norm,
    )


def _compare(first: Mapping[str, _Statistics], other: Mapping[str, _Statistics], number: int) -> None:
    if missing := [name for name in first if name not in other] or [n for n in other if n not in first]:
        raise VarshiftError(
            f"states[{number}] and states[0] do not have the same norms: {missing[0]!r} is in one of them."
        )
    for name, own in first.items():
        theirs = other[name]
        pairs = ((own.mean, theirs.mean), (own.variance, theirs.variance))
        if any(mine.shape != another.shape for mine, another in pairs):
            raise VarshiftError(
                f"states[{number}]: the statistics of {name!r} have the shape {tuple(theirs.mean.shape)}, "
                f"those of states[0] {tuple(own.mean.shape)}."
            )


def _pool(
    moments: Sequence[tuple[Tensor, Tensor]], sizes: Sequence[float], norm: Norm | None
) -> tuple[Tensor, Tensor]:
    between = 0.0 if norm is not None and norm.kind == "instance" else 1.0
    if norm is not None and not norm.centred:
        between = 0.0  # what it calls variance is a mean square about zero
    device = moments[0][0].device
    total: Pool | None = None
    for (mean, variance), size in zip(moments, sizes, strict=True):
        mean, variance = (tensor.detach().to(device, torch.float64) for tensor in (mean, variance))
        count = torch.tensor(size, dtype=torch.float64, device=device)
        pool = Pool(count, mean, variance * (size - 1))
        total = pool if total is None else merge(total, pool, between)
    assert total is not None
    # Without a spread of means there is a degree of freedom per network, and the average is exact.
    return total.mean, total.var if between else total.squares / (sum(sizes) - len(sizes))


def _written(own: _Statistics, mean: Tensor, variance: Tensor) -> dict[str, Tensor]:
    if own.norm is None:
        pairs = ((own.names[0], own.mean, mean), (own.names[1], own.variance, variance))
        return {name: value.to(like.device, like.dtype) for name, like, value in pairs}
    places = own.norm.own_states
    values = own.norm.changes(mean.to(own.mean.dtype), variance.to(own.variance.dtype))
    names = [name for name in own.names[:2] if name]
    return {name: value for name, (_, value) in zip(names, values[: len(places)], strict=True)}
