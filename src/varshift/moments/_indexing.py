"""Operations that put elements in places given by indices: linear in all that they move."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from varshift.flow import Node, operations

from ._call import Call
from ._rules import by_difference, rule
from ._signal import Signal

_LINEAR = ("sum", "mean", "add")  # reductions over the elements that share an index
_MOVED = ("self", "src", "source", "values", "value", "data")  # arguments whose elements are moved


@rule(*operations("placing"))
def _placed(node: Node, call: Call) -> Any:
    """Sums and means over the elements that share an index, and elements in the place of others.

    Variances of independent noise add up where the elements do, so that the same operation on the variances
    gives the map of the noise. Its size is that of the draw, which knows of the noise that neighbours share.
    """
    named = call.named()
    reduction = named.get("reduce")
    if reduction is not None and reduction not in _LINEAR:
        return by_difference(node, call)
    moved = {key: value for key, value in named.items() if key in _MOVED}
    variances = named | {key: _filled(value, 0.0) for key, value in moved.items()}
    if "alpha" in named:
        variances["alpha"] = named["alpha"] ** 2
    spread = Call(node, (), variances).run(lambda signal: signal.spread())
    if reduction == "mean":  # the mean of n variances is n times the variance of the mean
        counts = named | {key: _filled(value, 1.0) for key, value in moved.items()} | {"reduce": "sum"}
        spread = spread / Call(node, (), counts).run(_ones).clamp_min(1)
    return call.linear(spread)


def _ones(signal: Signal) -> Tensor:
    return torch.ones_like(signal.mean)


def _filled(value: Any, number: float) -> Any:
    """What is moved and is no signal, with one number in the place of its values."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return torch.full_like(value, number)
    return number if isinstance(value, (int, float)) and not isinstance(value, bool) else value
