"""A value on its way through a noisy network: what the data make of it, and what the noise adds."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

TINY = 1e-20


@dataclass(frozen=True, slots=True)
class Mask:
    """Two-point noise that met the signal last: ``value = scale * factor * base + shift``.

    Just behind it the signal is a mixture of two distributions and far from a Gaussian, so what follows up to
    the next operation that mixes units is computed on both parts by themselves.

    Attributes:
        low: The smaller value of the factor (0 for dropout).
        high: The larger value (``1 / keep`` for dropout).
        probability: Probability of the smaller value.
        base: The signal before the noise.
        scale: Elementwise factor since, one number per channel or one for all.
        shift: Elementwise term since, likewise.
    """

    low: float
    high: float
    probability: float
    base: Signal
    scale: Tensor | None = None
    shift: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Signal:
    """A value as training computes it, element by element, with data and noise apart.

    Attributes:
        mean: Its mean over the noise, given the data.
        variance: Its variance over the noise, given the data, up to one factor per channel; None without
            noise.
        draw: One draw of the noise: ``mean + draw`` is what one training pass computes; None without noise.
        mask: The two-point noise that met it last, if nothing has mixed units since.
        floating: Whether its scale is that of a made-up input, not that of the data.
        doubts: Operations on the way whose treatment is approximate.
    """

    mean: Tensor
    variance: Tensor | None = None
    draw: Tensor | None = None
    mask: Mask | None = None
    floating: bool = False
    doubts: frozenset[str] = frozenset()

    @property
    def noisy(self) -> bool:
        """Whether any noise has reached it."""
        return self.draw is not None

    @property
    def total(self) -> Tensor:
        """What one training pass computes."""
        return self.mean if self.draw is None else self.mean + self.draw

    def spread(self) -> Tensor:
        """Noise variance of each element: the map of `variance`, as large as the draw is in each channel.

        The map comes from squared weights, which is exact for fresh noise only; the draw passed through the
        weights themselves and knows how noise adds up over neighbours and channels.
        """
        if self.draw is None or self.variance is None:
            return torch.zeros_like(self.mean)
        size, mapped = channel_mean(self.draw.square()), channel_mean(self.variance)
        return self.variance * per_channel(size / mapped.clamp_min(TINY), self.variance)

    def but(self, **changes: object) -> Signal:
        """A copy with some attributes changed."""
        return replace(self, **changes)  # type: ignore[arg-type]


def channel_axes(x: Tensor) -> tuple[int, ...]:
    """All axes but the channels'."""
    return (0, *range(2, x.dim())) if x.dim() > 1 else (0,)


def channel_mean(x: Tensor) -> Tensor:
    """Mean of every channel over samples and positions."""
    return x.mean(channel_axes(x)) if x.dim() else x


def channel_variance(x: Tensor) -> Tensor:
    """Variance of every channel over samples and positions."""
    return x.var(channel_axes(x), correction=0) if x.dim() else torch.zeros_like(x)


def per_channel(values: Tensor, like: Tensor) -> Tensor:
    """One value per channel, shaped to be broadcast against a signal."""
    if values.dim() != 1 or like.dim() < 2:
        return values
    return values.reshape(1, -1, *(1,) * (like.dim() - 2))
