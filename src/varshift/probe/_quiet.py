"""Switches noise off without putting modules into eval mode, so that nothing else changes with it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from varshift.flow import Flow
from varshift.model import FunctionMode

# What makes a function that carries its own noise leave its input alone. Builtins have no signature to read:
# for them the position of each argument is written out.
_OFF: Mapping[Any, tuple[str, Any]] = {
    **dict.fromkeys(
        (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout, F.rrelu),
        ("training", False),
    ),
    F.multi_head_attention_forward: ("dropout_p", 0.0),
}
_OFF_BUILTIN: Mapping[Any, tuple[int, str, Any]] = {
    **dict.fromkeys(
        (
            torch.dropout,
            torch.dropout_,
            torch.feature_dropout,
            torch.feature_dropout_,
            torch.alpha_dropout,
            torch.alpha_dropout_,
            torch.feature_alpha_dropout,
            torch.feature_alpha_dropout_,
            torch.native_dropout,
        ),
        (2, "train", False),
    ),
    torch.rrelu: (3, "training", False),
    torch.rrelu_: (3, "training", False),
    F.scaled_dot_product_attention: (4, "dropout_p", 0.0),
}


class Quiet(FunctionMode):
    """Context in which dropout and its kin pass their input on, whatever the mode of their module.

    Noise that a module writes by hand is switched off by the flag of that module, and between the layers of a
    recurrent one by its rate. Only the shadow may be run so: `Shadow.fresh` gives the flags back.

    Args:
        network: The network, in train mode.
        flow: The network as captured in train mode; it tells which modules write noise by hand.
    """

    def __init__(self, network: nn.Module, flow: Flow) -> None:
        super().__init__()
        own = _written_by_hand(flow)
        for name, module in network.named_modules():
            if name in own:
                module.training = False
            if isinstance(module, nn.RNNBase) and module.dropout:
                module.dropout = 0.0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Switches off what makes noise; passes all other calls on."""
        kwargs = dict(kwargs or {})
        if (off := _OFF.get(func)) is not None:
            bound = _signature(func).bind(*args, **kwargs)
            bound.arguments.update([off])
            return func(*bound.args, **bound.kwargs)
        if (place := _OFF_BUILTIN.get(func)) is not None:
            position, name, value = place
            if len(args) > position:
                args = (*args[:position], value, *args[position + 1 :])
            else:
                kwargs[name] = value
        return func(*args, **kwargs)


@cache
def _signature(function: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(function)


def is_silent(flow: Flow | None) -> bool:
    """Whether a network, as captured in train mode, has no noise that acts, and runs the same every time."""
    return flow is not None and not flow.by_chance and all(site.rate == 0 for site in flow.noises)


def _written_by_hand(flow: Flow) -> frozenset[str]:
    """The modules that make noise from random numbers of their own."""
    return frozenset(
        site.name
        for site in flow.noises
        if not (flow.nodes[site.node].has("dropout", "recurrent") or _is_noisy(flow.nodes[site.node].op))
    )


def _is_noisy(operation: str) -> bool:
    return operation in ("rrelu", "rrelu_with_noise") or "dot_product" in operation
