"""Keeps an optimiser in step with a network whose parameters were replaced."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from varshift._sites import SiteId
from varshift.fixes._edit import Change
from varshift.fixes._surgery import Surgery


def sync_optimizer(optimizer: Optimizer, surgery: Surgery) -> tuple[Change, ...]:
    """Hands an optimiser the parameters that came, and takes those away that left.

    A parameter that replaces one of the same shape takes over its place in the parameter group and its
    state (momentum and the like). New ones join the group of their module's or their neighbours' parameters,
    without state. The rest is left alone, bit for bit.

    Args:
        optimizer: The optimiser; `Surgery.undo` takes it back, too.
        surgery: The surgery, with the network as it is now.

    Returns:
        One change for each parameter that was replaced, dropped or added.
    """
    _keep(optimizer, surgery)
    names = {id(parameter): name for name, parameter in surgery.network.named_parameters()}
    changes = []
    for old, new in surgery.replaced.values():
        group = next((g for g in optimizer.param_groups if _position(g["params"], old) is not None), None)
        if group is None or id(old) in names:  # not trained, or still in the network under another name
            continue
        place = _position(group["params"], old)
        state = optimizer.state.pop(old, None)
        if new is None or id(new) not in names:
            del group["params"][place]
            changes.append(_change("", "a parameter that left the network, with its state", ""))
            continue
        group["params"][place] = new
        name = names[id(new)]
        if state:
            optimizer.state[new] = _moved(state, old, new)
        changes.append(_change(name, "the parameter before", "carried over" if state else "no state yet"))
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if optimizer.param_groups:
        added = [
            (name, p)
            for name, p in surgery.network.named_parameters()
            if id(p) not in trained and p.requires_grad and id(p) in surgery.added
        ]
        for name, parameter in added:
            optimizer.param_groups[0]["params"].append(parameter)
            changes.append(_change(name, "", "added to the first parameter group"))
    return tuple(changes)


def _change(name: str, before: str, after: str) -> Change:
    module, _, leaf = name.rpartition(".")
    return Change(SiteId(module, leaf or "parameter"), before, after, "optimizer")


def _position(parameters: list[Any], wanted: nn.Parameter) -> int | None:
    return next((place for place, one in enumerate(parameters) if one is wanted), None)


def _moved(state: Mapping[str, Any], old: nn.Parameter, new: nn.Parameter) -> dict[str, Any]:
    """The state of a parameter as that of another one of the same shape."""
    moved = {}
    for name, value in state.items():
        if isinstance(value, torch.Tensor) and value.shape == old.shape:
            value = value.to(device=new.device)
        moved[name] = value
    return moved


def _keep(optimizer: Optimizer, surgery: Surgery) -> None:
    """Notes what the optimiser holds, for the undo."""
    groups = [(group, list(group["params"])) for group in optimizer.param_groups]
    count, state = len(optimizer.param_groups), dict(optimizer.state)

    def restore() -> None:
        del optimizer.param_groups[count:]
        for group, parameters in groups:
            group["params"][:] = parameters
        optimizer.state.clear()
        optimizer.state.update(state)

    surgery.on_undo(restore)
