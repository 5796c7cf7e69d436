"""Chains of norms, activations and weights with noise at the place that was asked for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

from varshift.functional import (
    KalmanState,
    add_kalman_states,
    conv_moments,
    pad_kalman_state,
    rectified_moments,
)
from varshift.nn import BatchKalmanNorm1d, BatchKalmanNorm2d, ThresholdedLinearUnit

from ._parts import PadChannels, Parts
from ._placement import noise_slots

# The tensor, and what Kalman norms know of its moments (None without such norms, and in evaluation).
Signal = tuple[Tensor, KalmanState | None]
Step = str | nn.Module
Plan = tuple[tuple[str, str, int], ...]


class Chain(nn.Module):
    """Layers one after the other; ``"norm"`` and ``"act"`` stand for what `Parts` makes of them.

    Args:
        channels: Channels of the input.
        steps: ``"norm"``, ``"act"`` (ReLU) or a module; modules with a weight set the channels.
        parts: Noise and norm.
        dimensions: Axes behind the channels.
    """

    def __init__(self, channels: int, steps: Sequence[Step], parts: Parts, dimensions: int = 2) -> None:
        super().__init__()
        self.plan = lay(self, channels, steps, parts, dimensions=dimensions)

    def forward(self, x: Tensor, state: KalmanState | None = None) -> Signal:
        """The signal behind the last layer."""
        return run(self, self.plan, (x, state))


def lay(
    owner: nn.Module,
    channels: int,
    steps: Sequence[Step],
    parts: Parts,
    *,
    dimensions: int = 2,
    names: dict[str, str] | None = None,
    start: int = 1,
    noisy: bool = True,
) -> Plan:
    """Gives a chain's layers to their owner, in order of execution, and says how to run them.

    Args:
        owner: The module that the layers become children of.
        channels: Channels of the input.
        steps: See `Chain`.
        parts: Noise and norm.
        dimensions: Axes behind the channels.
        names: Names of the children of a kind; by default they are numbered: ``norm1``, ``conv1``.
        start: The first of those numbers.
        noisy: Whether the noise may stand in this chain.

    Returns:
        Kind and name of every layer, and which step it completes (noise: the one it stands behind); an
        activation without a module of its own has an empty name.
    """
    kinds = [_kind(step) for step in steps]
    slots = noise_slots(kinds, parts.placement) if noisy else {}
    noises = slots if parts.dropout > 0 else {}
    plan: list[tuple[str, str, int]] = []
    numbers: dict[str, int] = {}

    def add(kind: str, name: str, module: nn.Module, step: int) -> None:
        if names and name in names:
            name = names[name]
        else:
            numbers[name] = numbers.get(name, start - 1) + 1
            name = f"{name}{numbers[name]}"
        owner.add_module(name, module)
        plan.append((kind, name, step))

    activated: int | None = None  # index of an activation that its norm takes over
    for index, step in enumerate(steps):
        if index in noises:
            owner.add_module(noises[index], parts.make_noise(dimensions))
            plan.append(("other", noises[index], index - 1))
        if isinstance(step, nn.Module):
            channels = _out_channels(step, channels)
            name = "conv" if isinstance(step, _ConvNd) else type(step).__name__.lower()
            add(kinds[index], name, step, index)
        elif step == "act":
            if index == activated:
                if index in noises:  # between the norm and its threshold
                    add("other", "threshold", ThresholdedLinearUnit(channels), index)
                continue
            plan.append(("act", "", index))
        else:
            followed = parts.norm == "frn" and list(steps[index + 1 : index + 2]) == ["act"]
            activated = index + 1 if followed else None
            whole = followed and index + 1 not in noises
            norm = parts.make_norm(channels, dimensions, activated=whole)
            if norm is not None:
                add("norm", "norm", norm, index + whole)
    if len(steps) in noises:
        owner.add_module(noises[len(steps)], parts.make_noise(dimensions))
        plan.append(("other", noises[len(steps)], len(steps)))
    return tuple(plan)


def run(owner: nn.Module, plan: Plan, signal: Signal) -> Signal:
    """Sends a signal through layers of their owner."""
    x, state = signal
    for kind, name, _ in plan:
        if kind == "act":
            x, state = rectified((x, state))
            continue
        module = getattr(owner, name)
        if isinstance(module, (BatchKalmanNorm1d, BatchKalmanNorm2d)):
            x, after = module(x, state, None)
            state = after if module.training else None
        else:
            x = module(x)
            state = None if state is None or kind == "norm" else behind(module, state)
    return x, state


def rectified(signal: Signal) -> Signal:
    """The signal behind a ReLU."""
    x, state = signal
    return F.relu(x), None if state is None else rectified_moments(state)


def behind(module: nn.Module, state: KalmanState) -> KalmanState:
    """The moments behind a layer: its own for weights, padded as channels are, else unchanged."""
    if isinstance(module, PadChannels):
        return pad_kalman_state(state, module.before, module.after)
    if not isinstance(module, (_ConvNd, nn.Linear)):
        return state
    groups = module.groups if isinstance(module, _ConvNd) else 1
    return conv_moments(state, module.weight, module.bias, groups, negative_slope=1.0)


def added(left: Signal, right: Signal) -> Signal:
    """The sum of two signals."""
    states = (left[1], right[1])
    state = None if states[0] is None or states[1] is None else add_kalman_states(states[0], states[1])
    return left[0] + right[0], state


def joined(left: Signal, right: Signal) -> Signal:
    """Two signals side by side."""
    x = torch.cat((left[0], right[0]), 1)
    if left[1] is None or right[1] is None:
        return x, None
    return x, KalmanState(*(torch.cat(pair, -1) for pair in zip(left[1], right[1], strict=True)))


def _kind(step: Step) -> str:
    if isinstance(step, str):
        return step
    return "weight" if isinstance(step, (_ConvNd, nn.Linear)) else "other"


def _out_channels(module: nn.Module, channels: int) -> int:
    if isinstance(module, _ConvNd):
        return module.out_channels
    if isinstance(module, PadChannels):
        return channels + module.before + module.after
    return module.out_features if isinstance(module, nn.Linear) else channels
