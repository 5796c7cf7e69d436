"""How far the sizes of data and noise rest on the inputs, whose make no prediction knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from varshift.flow import has_property

from ._signal import TINY, Signal, Unsure, channel_power, channel_variance

_POSITIONS = 8  # along each axis: a spread over channels does not need more
_DEAD = 1e-6  # of the average size: channels below say nothing


def unsure_after(
    name: str, named: Mapping[str, Any], squares: Tensor | None, given: Sequence[Signal], result: Signal
) -> Unsure:
    """What is unsure of the result of an operation.

    Were all units that a weight reads independent, squared weights would tell the size of what comes out.
    What comes out besides rests on how the units go together: in noise that each has for itself, hardly
    anything; in data nearly everything; in noise that units share, as much as in data. That differs from
    channel to channel, and how much it differs is taken for how wrong it is where inputs are made up.

    Args:
        name: The operation.
        named: Its arguments by name.
        squares: Squares of its weights, None for an operation without weights.
        given: The signals among its arguments.
        result: What comes out.
    """
    if squares is not None and len(given) == 1:
        more = _of_weights(name, named, squares, given[0], result)
        return given[0].unsure[0] + more[0], given[0].unsure[1] + more[1]
    if len(given) == 1:
        return given[0].unsure
    if not has_property(name, "sum", "concatenation"):
        # A gate for whole channels or samples, of fewer elements, errs in data and noise alike.
        most = max(signal.mean.numel() for signal in given)
        given = [signal for signal in given if signal.mean.numel() == most]
        return sum(signal.unsure[0] for signal in given), sum(signal.unsure[1] for signal in given)
    data = [channel_variance(_thin(signal.mean)).mean() for signal in given]
    noise = [_noise(signal).mean() for signal in given]
    return (
        _average([signal.unsure[0] for signal in given], data),
        _average([signal.unsure[1] for signal in given], noise),
    )


def unsure_behind(x: Signal, result: Signal) -> Unsure:
    """What is unsure behind a noise site: new noise is as large as the data say."""
    data, noise = x.unsure
    old = (_noise(x).mean() / _noise(result).mean().clamp_min(TINY)).clamp_max(1)
    return data, old * noise + (1 - old) * data


def _thin(x: Tensor) -> Tensor:
    """Some of the positions of a map."""
    steps = (slice(None, None, max(size // _POSITIONS, 1)) for size in x.shape[2:])
    return x[(slice(None), slice(None), *steps)] if x.dim() > 2 else x


def _average(values: Sequence[Tensor | float], sizes: Sequence[Tensor]) -> Tensor:
    total = torch.stack([size * value for size, value in zip(sizes, values, strict=True)]).sum()
    return total / torch.stack(list(sizes)).sum().clamp_min(TINY)


def _noise(x: Signal) -> Tensor:
    return torch.zeros((), device=x.mean.device) if x.draw is None else channel_power(_thin(x.draw))


def _of_weights(name: str, named: Mapping[str, Any], squares: Tensor, x: Signal, result: Signal) -> Unsure:
    # Where channels are not the second axis (tokens, samples without a batch), their spread says nothing.
    if squares.dim() < 2 or squares.dim() != x.mean.dim():
        return 0.0, 0.0
    squares = squares.flatten(2).sum(2) if squares.dim() > 2 else squares
    groups = int(named.get("groups", 1))
    backward = has_property(name, "matrix") or "transpose" in name or bool(named.get("transposed", False))
    squares = squares.unflatten(0, (groups, -1))
    squares = squares.transpose(1, 2) if backward else squares
    noisy = x.draw is not None and result.draw is not None
    before, after = (
        torch.stack([channel_variance(_thin(signal.mean)), *([_noise(signal)] if noisy else [])], 1)
        for signal in (x, result)
    )
    expected = (squares @ before.unflatten(0, (groups, -1))).flatten(0, 1)
    alive = (expected > _DEAD * expected.mean(0)) & (after > _DEAD * after.mean(0))
    apart = torch.where(alive, (after / expected.clamp_min(TINY)).clamp_min(TINY).log(), 0.0)
    count = alive.sum(0).clamp_min(1)
    spread = ((apart - apart.sum(0) / count).square() * alive).sum(0) / count
    return spread[0], spread[1] if noisy else 0.0
