"""Which module of another network corresponds to a module of this one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from varshift.model._norms import Norm
from varshift.model._state import State, find_state

_COUNTER = "num_batches_tracked"

_Signature = tuple[tuple[str, tuple[int, ...]], ...]


def counterparts(network: nn.Module, other: nn.Module) -> dict[str, str]:
    """Pairs the modules of two networks that were built alike, by path.

    The largest parts that hold tensors of the same names and shapes correspond: the whole network, else a
    backbone under another name, else single layers. Of several alike, the one of the same path is taken, else
    they are paired in their order.

    Args:
        network: This network, unwrapped.
        other: The other one, unwrapped.

    Returns:
        For each path of a module in `network` that has a counterpart, the path of it in `other`.

    Example:
        >>> body = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
        >>> counterparts(nn.Sequential(body, nn.Linear(3, 4)), body)
        {'0': '', '0.0': '0', '0.1': '1'}
    """
    places: dict[_Signature, list[str]] = {}
    for path, module in other.named_modules(remove_duplicate=False):
        if signature := _signature(module):
            places.setdefault(signature, []).append(path)
    return dict(_pairs(network, "", other, places, set()))


def _pairs(
    module: nn.Module,
    path: str,
    other: nn.Module,
    places: Mapping[_Signature, list[str]],
    taken: set[str],
) -> Iterator[tuple[str, str]]:
    free = [place for place in places.get(_signature(module), ()) if place not in taken]
    if free:
        place = path if path in free else free[0]
        for inner, _ in other.get_submodule(place).named_modules(remove_duplicate=False):
            taken.add(_joined(place, inner))
        known = {inner for inner, _ in other.get_submodule(place).named_modules(remove_duplicate=False)}
        for inner, _ in module.named_modules(remove_duplicate=False):
            if inner in known:
                yield _joined(path, inner), _joined(place, inner)
        return
    for name, child in module.named_children():
        yield from _pairs(child, _joined(path, name), other, places, taken)


def _signature(module: nn.Module) -> _Signature:
    tensors = (
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    )
    # Frozen norms lack the counter, and are counterparts all the same.
    return tuple((name, tuple(tensor.shape)) for name, tensor in tensors if not name.endswith(_COUNTER))


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path and name else path or name


def counterpart_norm(norm: Norm, pairs: Mapping[str, str], other: nn.Module) -> Norm | None:
    """The norm of another network that corresponds to one of this network; None without one.

    Args:
        norm: A norm of this network.
        pairs: The modules that correspond.
        other: The other network.
    """
    states = norm.states
    mean, spread = (_renamed(name, pairs) if name else None for name in (states.mean, states.spread))
    if (states.mean and mean is None) or (states.spread and spread is None):
        return None
    own = pairs.get(norm.name.partition("#")[0])
    found: list[State | None] = [find_state(other, name) if name else None for name in (mean, spread)]
    if own is None or all(state is None for state in found):
        return None
    renamed = replace(states, mean=mean, spread=spread)
    return Norm(own, other.get_submodule(own), norm.kind, renamed, *found)


def _renamed(name: str, pairs: Mapping[str, str]) -> str | None:
    """The name of a state in the other network: the longest path of a module in it is exchanged."""
    owner, _, leaf = name.rpartition(".")
    while owner not in pairs:
        if not owner:
            return None
        owner, _, last = owner.rpartition(".")
        leaf = f"{last}.{leaf}"
    return _joined(pairs[owner], leaf)


def same_values(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same numbers, wherever they are."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    with torch.no_grad():
        return bool(torch.equal(one.detach(), other.detach().to(one.device)))
