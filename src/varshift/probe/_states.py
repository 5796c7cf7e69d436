"""The states of a model, and which of its norms learn."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from varshift.flow import RecognisedNorms
from varshift.model import Call, Forward, Norm, Shadow, find_norms, set_flags
from varshift.probe._tap import Tap

UNREAD = "its channels, or the row of statistics that a sample belongs to, could not be told"


def measurable_norms(network: nn.Module, recognised: RecognisedNorms) -> tuple[Norm, ...]:
    """The norms of a network whose statistics can be measured and replaced."""
    return tuple(norm for norm in find_norms(network, recognised) if norm.states.unsupported is None)


def set_noise(
    model: nn.Module,
    norms: Sequence[Norm],
    on: bool,
    hand_batch: frozenset[str] = frozenset(),
    *,
    as_passed: bool = False,
) -> None:
    """Puts a model into train mode (noise on) or eval mode (noise off), as its own methods do it.

    Which statistics the norms use is the tap's business, except for norms written by hand, which follow their
    training flag, and for synchronised norms, which would start to talk to other processes.

    Args:
        model: The model.
        norms: Its norms.
        on: Whether noise acts.
        hand_batch: Names of the norms written by hand that normalise with batch statistics.
        as_passed: Whether parts in eval mode within a model in training mode stay there (`train_as_passed`).
    """
    synchronised = [norm.module for norm in norms if isinstance(norm.module, nn.SyncBatchNorm)]
    by_hand = [
        module
        for norm in norms
        if norm.kind == "custom" and norm.name in hand_batch
        for module in (norm.module, *(state.module for state in norm.own_states))
    ]
    set_flags(model, on, training=by_hand, evaluation=synchronised, as_passed=as_passed)


def frozen_norms(network: nn.Module, norms: Sequence[Norm]) -> dict[str, str]:
    """The norms that their user froze, by name, with how: the statistics of these are meant to stay.

    A network that is frozen as a whole, as for deployment, says nothing about its norms.

    Args:
        network: The network, in the modes in which its user left it.
        norms: Its norms.
    """
    trains = any(parameter.requires_grad for parameter in network.parameters())
    found: dict[str, str] = {}
    for norm in norms:
        states = {id(state.tensor) for state in norm.own_states}
        own = [value for value in norm.module.parameters(recurse=False) if id(value) not in states]
        if network.training and not norm.module.training:
            found[norm.name] = "it is frozen: in eval mode while the model is in training mode"
        elif trains and own and not any(value.requires_grad for value in own):
            found[norm.name] = "it is frozen: its parameters need no gradient"
    return found


def live_norms(
    shadow: Shadow,
    norms: Sequence[Norm],
    forward: Forward | None,
    call: Call,
    *,
    as_passed: bool = False,
) -> tuple[frozenset[str], frozenset[str]]:
    """Finds the norms that learn statistics when the model trains.

    Torch's own norms say so by their flag after ``model.train()``. Norms with a forward of their own may do
    anything, so they are watched: subclasses of torch's norms on a few zeros, all others during one
    train-mode pass over two samples. Those that ask for batch statistics or write to their buffers are live.

    Args:
        shadow: The model's shadow, as its user passed the model.
        norms: Its norms.
        forward: Runs the model.
        call: A batch.
        as_passed: Whether norms in eval mode within a model in training mode count as frozen.

    Returns:
        The names of the live norms, and of those among them that are written by hand.
    """
    model = shadow.network
    set_noise(model, (), True, as_passed=as_passed)
    live = {norm.name for norm in norms if norm.module.training}
    watched = [norm for norm in norms if norm.overrides_forward and norm.name in live]
    unsure = []
    with torch.no_grad(), Tap(watched, "called", record=False) as alone:
        for norm in watched:
            asks = _asks_for_batch_statistics(norm, alone)
            if asks is None:
                unsure.append(norm)
            elif not asks:
                live.discard(norm.name)
    if not unsure:
        shadow.fresh()
        return frozenset(live), frozenset()
    set_noise(model, norms, True, as_passed=as_passed)
    before = {
        norm.name: [(state.tensor, state.tensor.detach().clone()) for state in norm.own_states]
        for norm in unsure
    }
    with Tap(norms, "called", record=False) as tap:
        _try_small(lambda few: few.outputs(model, forward), call, tap)
    for norm in unsure:
        changed = any(
            state.tensor is not tensor or not torch.equal(tensor, value)
            for state, (tensor, value) in zip(norm.own_states, before[norm.name], strict=True)
        )
        ran = norm.name in tap.called or norm.name in tap.by_hand
        if ran and not changed and norm.name not in tap.trained:
            live.discard(norm.name)
    shadow.fresh()
    return frozenset(live), frozenset(tap.by_hand & live)


def _asks_for_batch_statistics(norm: Norm, tap: Tap) -> bool | None:
    """Runs a subclass of torch's batch norm alone; None when that does not tell."""
    dimensions = {nn.BatchNorm1d: 0, nn.BatchNorm2d: 2, nn.BatchNorm3d: 3}
    extra = next((count for cls, count in dimensions.items() if isinstance(norm.module, cls)), None)
    if extra is None:
        return None
    zeros = norm.mean.new_zeros((2, norm.channels, *[1] * extra))
    weight = next(norm.module.parameters(recurse=False), None)
    try:
        norm.module.forward(zeros if weight is None else zeros.to(weight.dtype))
    except Exception:  # it wants more than an input; the whole model will tell
        return None
    return norm.name in tap.trained if norm.name in tap.called else None


def _try_small(run: Callable[[Call], Any], call: Call, tap: Tap) -> None:
    """Runs on two samples; a model that insists on its batch size gets the whole batch."""
    with torch.no_grad():
        few = call.take(2)
        if few is not None and few is not call:
            with contextlib.suppress(Exception):  # whatever it is, the whole batch decides
                tap.begin()
                run(few.copy())
                return
        tap.begin()
        run(call.copy())
