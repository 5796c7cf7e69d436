"""Which moment of a signal a number per channel is, told from its values on made-up signals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from varshift.model import Form, Layout

_TOLERANCE = 3e-3


@dataclass(frozen=True, slots=True)
class Moment:
    """What a state holds.

    Attributes:
        kind: ``"mean"``, or the form in which it holds a variance.
        eps: What is added to the variance before it is stored.
        per_sample: Whether it is an average of the moments of single samples.
    """

    kind: Literal["mean"] | Form
    eps: float = 0.0
    per_sample: bool = False


def by_channel(x: Tensor, channels: int, layout: Layout) -> Tensor | None:
    """A signal of shape ``(N, ...)`` as ``(N, channels, values)``; None where that layout does not fit."""
    if layout == "second" and x.dim() >= 2 and x.shape[1] == channels:
        return x.flatten(2) if x.dim() > 2 else x.unsqueeze(2)
    if layout == "last" and x.dim() >= 2 and x.shape[-1] == channels:
        return x.movedim(-1, 1).flatten(2) if x.dim() > 2 else x.unsqueeze(2)
    if layout == "all" and channels == 1:
        return x.reshape(1, 1, -1)
    if layout == "samples" and x.dim() >= 1 and x.shape[0] and x[0].numel() == channels:
        return x.reshape(x.shape[0], channels, 1)
    return None


def layouts(shape: Sequence[int], channels: int) -> list[Layout]:
    """The layouts in which a signal may have that many channels, the likeliest first."""
    fitting: list[Layout] = []
    if len(shape) >= 2 and shape[1] == channels:
        fitting.append("second")
    if len(shape) >= 3 and shape[-1] == channels:
        fitting.append("last")
    if len(shape) >= 3 and math.prod(shape[1:]) == channels:
        fitting.append("samples")
    if channels == 1 and not fitting:
        fitting.append("all")
    return fitting


def made_up(shape: Sequence[int], channels: int, layout: Layout, generator: torch.Generator) -> Tensor:
    """A signal whose channels have different means and variances."""
    x = torch.randn(tuple(shape), generator=generator)
    scale = torch.rand(channels, generator=generator) * 1.5 + 0.5
    offset = torch.rand(channels, generator=generator) * 4 - 2
    return x * per_channel(scale, shape, layout) + per_channel(offset, shape, layout)


def per_channel(values: Tensor, shape: Sequence[int], layout: Layout) -> Tensor:
    """One value for each channel, in a shape that combines with a signal of the shape given."""
    if layout == "second":
        return values.view(-1, *[1] * (len(shape) - 2))
    return values.view(tuple(shape[1:])) if layout == "samples" else values.view(-1)


def fit_moment(values: Sequence[Tensor], signals: Sequence[Tensor]) -> Moment | None:
    """Tells which moment of the signals the values are.

    The values are put into the form of a variance, in which they must be a combination of the variance, the
    squared mean and a constant that is the same for all channels and signals.

    Args:
        values: For each signal, one number per channel.
        signals: The signals as ``(N, channels, values)``.
    """
    target = torch.cat([value.double().flatten() for value in values])
    if not bool(torch.isfinite(target).all()):
        return None
    flat = [signal.double().transpose(0, 1).flatten(1) for signal in signals]
    mean = torch.cat([x.mean(1) for x in flat])
    variance = torch.cat([x.var(1, correction=0) for x in flat])
    if _close(target, mean, mean.std(correction=0)):
        return Moment("mean")
    count = flat[0].shape[1]
    within = None
    if signals[0].shape[2] > 1:
        within = torch.cat([signal.double().var(2, correction=0).mean(0) for signal in signals])
    forms: tuple[tuple[Form, Tensor], ...] = (
        ("variance", target),
        ("deviation", target.square()),
        ("inverse_deviation", target.square().reciprocal()),
        ("log_variance", target.exp()),
    )
    for form, stored in forms:
        if not bool(torch.isfinite(stored).all()) or bool((stored < 0).any()):
            continue
        shares = _regress(stored, (variance, mean.square(), torch.ones_like(mean)))
        if shares is not None and 0.9 < shares[0] < 1.1 * count / max(1, count - 1):
            if form == "variance" and abs(shares[1] - shares[0]) < 0.05:
                return Moment("second_moment", shares[2])
            if form == "deviation" and abs(shares[1] - shares[0]) < 0.05:
                return Moment("root_mean_square", shares[2])
            if shares[1] < 0.5:
                return Moment(form, max(0.0, shares[2]))
        if within is None:
            continue
        shares = _regress(stored, (within, torch.ones_like(mean)))
        values_each = signals[0].shape[2]
        if shares is not None and 0.9 < shares[0] < 1.1 * values_each / (values_each - 1):
            return Moment(form, max(0.0, shares[1]), per_sample=True)
    return None


def accumulates(steps: Sequence[Tensor], signals: Sequence[Tensor]) -> bool:
    """Whether steps are proportional to a sum of the signals or of their squares.

    Args:
        steps: For each signal, what was added to the state, one number per channel.
        signals: The signals as ``(N, channels, values)``.
    """
    target = torch.cat([step.double().flatten() for step in steps])
    flat = [signal.double().transpose(0, 1).flatten(1) for signal in signals]
    for power in (1, 2):
        moment = torch.cat([x.pow(power).mean(1) for x in flat])
        shares = _regress(target, (moment,))
        if shares is not None and shares[0] > 0:
            return True
    return False


def _close(values: Tensor, moment: Tensor, scale: Tensor) -> bool:
    return bool((values - moment).abs().max() <= _TOLERANCE * scale.clamp_min(1e-12))


def _regress(target: Tensor, columns: tuple[Tensor, ...]) -> list[float] | None:
    """Coefficients of the columns that give the target; None when they do not."""
    if target.numel() < 2 * len(columns):
        return None
    matrix = torch.stack(columns, 1)
    # Relative errors count: single numbers may be very large.
    weight = target.abs().clamp_min(1e-3 * target.abs().max().clamp_min(1e-30)).reciprocal()
    solution = torch.linalg.lstsq(matrix * weight[:, None], (target * weight)[:, None]).solution[:, 0]
    rest = (matrix @ solution - target) * weight
    if not bool(torch.isfinite(rest).all()) or float(rest.abs().max()) > _TOLERANCE:
        return None
    return solution.tolist()
