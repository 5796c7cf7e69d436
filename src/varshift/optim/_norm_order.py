"""Which weights a batch norm follows, read off the order of modules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from varshift.optim._filters import ScaleInvariantWeight, is_weight_layer
from varshift.optim._selection import unwrapped

# f(c x) = c f(x) for c > 0, channel by channel.
_HOMOGENEOUS = (
    nn.Identity,
    nn.ReLU,
    nn.LeakyReLU,
    nn.PReLU,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
)


def find_followed_by_norm(
    model: nn.Module, *, order: Literal["sequential", "registered"] = "sequential"
) -> list[ScaleInvariantWeight]:
    """Finds linear layers and convolutions that a batch norm follows in the order of modules.

    Between the two there may be layers that keep a positive scale: ReLU, leaky ReLU, PReLU, pooling, dropout.

    Args:
        model: The network.
        order: ``"sequential"`` looks only inside `torch.nn.Sequential`, whose order is that of execution.
            ``"registered"`` takes the order in which any module's children were assigned for it. Most
            networks are written so, but nothing enforces it, and a convolution whose output is summed with
            another signal before the norm is not scale invariant: check with `find_scale_invariant`.

    Returns:
        The weights, each paired with its batch norm.

    Raises:
        ValueError: If `order` is unknown.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.BatchNorm1d(4), nn.Linear(4, 2))
        >>> [weight.name for weight in find_followed_by_norm(model)]
        ['0']
    """
    if order not in ("sequential", "registered"):
        raise ValueError(f"order={order!r} must be 'sequential' or 'registered'.")
    model = unwrapped(model)
    names = {id(module): name for name, module in model.named_modules()}
    parents: dict[int, int] = {}
    for module in model.modules():
        for child in module._modules.values():
            parents[id(child)] = parents.get(id(child), 0) + 1
    found: dict[int, ScaleInvariantWeight] = {}
    for parent in model.modules():
        if order == "registered" or _is_sequential(parent):
            chain = list(_flat(parent))
            for position, module in enumerate(chain):
                norm = _next_norm(chain[position + 1 :])
                if not is_weight_layer(module) or norm is None or parents.get(id(module), 0) > 1:
                    continue
                weight = ScaleInvariantWeight(names[id(module)], module, ((norm, 0),))
                if norm.num_features == weight.units:
                    found.setdefault(id(module), weight)
    return sorted(found.values(), key=lambda weight: list(names.values()).index(weight.name))


def _is_sequential(module: nn.Module) -> bool:
    return type(module).forward is nn.Sequential.forward


def _flat(parent: nn.Module) -> Iterator[nn.Module]:
    for child in parent.children():
        if _is_sequential(child):
            yield from _flat(child)
        else:
            yield child


def _next_norm(rest: list[nn.Module]) -> _BatchNorm | None:
    for module in rest:
        if isinstance(module, _BatchNorm):
            return module
        if not isinstance(module, _HOMOGENEOUS):
            return None
    return None
