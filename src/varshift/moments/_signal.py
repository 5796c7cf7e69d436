"""A value on its way through a noisy network: what the data make of it, and what the noise adds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

TINY = 1e-20
Unsure = tuple[Tensor | float, Tensor | float]
SURE: Unsure = (0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Mask:
    """Two-point noise that met the signal last: ``value = scale * factor * base + shift``.

    Just behind it the signal is a mixture of two distributions and far from a Gaussian, so what follows up to
    the next operation that mixes units is computed on both parts by themselves.

    Attributes:
        low: The smaller value of the factor (0 for dropout), one for all, one per channel, or a map.
        high: The larger value (``1 / keep`` for dropout), likewise.
        probability: Probability of the smaller value, likewise.
        base: The signal before the noise.
        scale: Elementwise factor since, one number per channel or one for all.
        shift: Elementwise term since, likewise or a map.
        other_noise: Variance of other noise that was added since, a map.
        shape: Shape of the factor: how many elements share one.
        factor: The factors of the draw that goes with it, to be broadcast against the signal.
    """

    low: Tensor | float
    high: Tensor | float
    probability: Tensor | float
    base: Signal
    scale: Tensor | None = None
    shift: Tensor | None = None
    other_noise: Tensor | None = None
    shape: tuple[int, ...] | None = None
    factor: Tensor | None = None

    @property
    def fresh(self) -> bool:
        """Whether nothing has happened to the signal since."""
        return self.scale is None and self.shift is None and self.other_noise is None

    @property
    def uneven(self) -> bool:
        """Whether the noise differs from position to position."""
        return any(
            isinstance(part, Tensor) and part.dim() > 1 for part in (self.low, self.high, self.probability)
        )

    @property
    def factor_mean(self) -> Tensor | float:
        """Mean of the factor."""
        return self.probability * self.low + (1 - self.probability) * self.high

    @property
    def factor_noise(self) -> Tensor | float:
        """Variance of the factor over its squared mean."""
        spread = self.probability * (1 - self.probability) * (self.high - self.low) ** 2
        return spread / self.factor_mean**2

    def moved(self, scale: Tensor, shift: Tensor | None) -> Mask:
        """The same noise, ``scale * value + shift`` later."""
        old = None if self.shift is None else self.shift * per_channel(scale, self.shift)
        if shift is not None:
            old = shift if old is None else old + per_channel(shift, old)
        noise = self.other_noise
        if noise is not None:
            noise = noise * per_channel(scale, noise).square()
        return replace(
            self,
            scale=scale if self.scale is None else self.scale * scale,
            shift=old,
            other_noise=noise,
        )

    def added(self, value: Tensor, noise: Tensor | None) -> Mask:
        """The same noise with something added since."""
        shift = value if self.shift is None else per_channel(self.shift, value) + value
        if noise is not None and self.other_noise is not None:
            noise = noise + self.other_noise
        return replace(self, shift=shift, other_noise=self.other_noise if noise is None else noise)


@dataclass(frozen=True, slots=True)
class Unknown:
    """A value that could not be computed.

    Attributes:
        reason: Why not; empty where it was said of what it derives from.
    """

    reason: str = ""


class Line(NamedTuple):
    """What becomes of the values of a channel: ``gain mean + term``, and noise times `louder`."""

    gain: Tensor
    term: Tensor
    louder: Tensor

    def then(self, scale: Tensor, shift: Tensor) -> Line:
        """The same, and ``scale value + shift`` behind it."""
        gain = self.gain * scale
        louder = gain if self.louder is self.gain else self.louder * scale
        return Line(gain, self.term * scale + shift, louder)


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
        exact: Whether `variance` is right in size, not only up to one factor per channel.
        independent: Whether the noise of each element is its own, so that squared weights are exact.
        sized: Whether `variance` is as large as the draw in every channel, so that it need not be put there.
        source: The signal and the elementwise function that it comes from, if nothing has happened to it
            since. The noise of the source is the more symmetric one, so that other draws are made of that.
        unsure: Squared relative errors that the sizes of data and noise may have since the last anchor, both
            in one unit, which does not matter.
    """

    mean: Tensor
    variance: Tensor | None = None
    draw: Tensor | None = None
    mask: Mask | None = None
    floating: bool = False
    doubts: frozenset[str] = frozenset()
    exact: bool = False
    independent: bool = False
    sized: bool = False
    source: tuple[Signal, Callable[[Tensor], Tensor]] | None = None
    unsure: Unsure = SURE

    @property
    def noisy(self) -> bool:
        """Whether any noise has reached it."""
        return self.draw is not None

    @property
    def total(self) -> Tensor:
        """What one training pass computes."""
        return self.mean if self.draw is None else self.mean + self.draw

    def deviation(self) -> Tensor:
        """What the noise adds in one training pass: the draw, 0 without noise."""
        return torch.zeros_like(self.mean) if self.draw is None else self.draw

    def spread(self) -> Tensor:
        """Noise variance of each element: the map of `variance`, as large as the draw is in each channel.

        The map comes from squared weights, which is exact for fresh noise only; the draw passed through the
        weights themselves and knows how noise adds up over neighbours and channels.
        """
        if self.draw is None or self.variance is None:
            return torch.zeros_like(self.mean)
        if self.exact or self.sized:
            return self.variance
        return self.variance * per_channel(self.level(), self.variance)

    def levelled(self) -> Signal:
        """The same signal; its `variance` is as large as the draw in each channel, unless it is exact."""
        if self.draw is None or self.variance is None or self.exact or self.sized:
            return self
        return replace(self, variance=self.spread(), sized=True)

    @property
    def spread_is_sized(self) -> bool:
        """Whether `spread` is as large as the draw: it was put there, or the draw is all that tells."""
        return self.sized or not self.exact

    def level(self) -> Tensor:
        """What `variance` has to be multiplied with to be as large as the draw; 1 without noise."""
        if self.draw is None or self.variance is None:
            return torch.ones_like(channel_mean(self.mean))
        return channel_power(self.draw) / channel_mean(self.variance).clamp_min(TINY)

    def chance(self) -> Tensor:
        """Factor for the draw that takes chance from its size, where the variance is known; 1 elsewhere."""
        if self.sized or not self.exact:
            return torch.ones_like(channel_mean(self.mean))
        return self.level().clamp_min(TINY).rsqrt().clamp(0.5, 2)

    def noise(self) -> Tensor:
        """Noise variance of each channel."""
        if self.draw is None or self.variance is None:
            return torch.zeros_like(channel_mean(self.mean))
        return channel_mean(self.variance) if self.exact else channel_power(self.draw)

    def replica(self, order: Tensor, sign: float = 1.0, *, alone: bool = True) -> Tensor:
        """The same data with other noise: that of other samples, as large as it is here.

        Args:
            order: A permutation of the samples.
            sign: Sign of the noise.
            alone: Whether nothing that shares its noise is replicated along with it; two-point noise that
                met it last is then drawn anew.
        """
        if self.draw is None:
            return self.mean
        if self.source is not None:
            before, function = self.source
            return function(before.replica(order, sign, alone=alone))
        mask = self.mask if alone else None
        if mask is not None and mask.shape is not None and mask.other_noise is None:
            value = mask.base.replica(order, sign)
            rate, small, large = (
                per_channel(figure, value) if isinstance(figure, Tensor) else figure
                for figure in (mask.probability, mask.low, mask.high)
            )
            low = torch.rand(mask.shape, device=value.device) < rate
            value = value * torch.where(low, small, large).to(value.dtype)
            if mask.scale is not None:
                value = value * per_channel(mask.scale, value)
            return value if mask.shift is None else value + per_channel(mask.shift, value)
        if self.mean.dim() < 2 or len(order) != len(self.draw):
            return self.mean + sign * self.draw
        size = self.spread()
        other = (size / size[order].clamp_min(TINY)).sqrt().clamp_max(10) * self.draw[order]
        # Samples without noise at an element, as behind a rectifier, have none to lend: the rest lends more.
        lent = (channel_mean(size) / channel_power(other).clamp_min(TINY)).sqrt().clamp_max(4)
        return self.mean + sign * per_channel(lent, other) * other

    def but(self, **changes: object) -> Signal:
        """A copy with some attributes changed; it stands for itself from then on."""
        return replace(self, **{"source": None, "sized": False, **changes})  # type: ignore[arg-type]

    def moved(self, line: Line) -> Signal:
        """Another size and place for every channel; draw and variance come out equally large."""
        mean = affine(self.mean, line.gain, line.term)
        mask = self.mask
        if mask is not None and line.louder is line.gain:
            mask = mask.moved(line.gain, line.term)
        elif mask is not None:  # data and noise change by different factors: the rest is a term beside them
            again = mask.moved(line.louder, None)
            mask = again.added(mean - per_channel(line.louder, mean) * self.mean, None)
        if self.draw is None or self.variance is None:
            return self.but(mean=mean, mask=mask)
        size, loudness = line.louder.square(), line.louder
        if self.exact:
            loudness = loudness * self.chance()
        elif not self.sized:
            size = size * self.level()
        return self.but(
            mean=mean,
            variance=self.variance * per_channel(size, self.variance),
            draw=self.draw * per_channel(loudness, self.draw),
            mask=mask,
            sized=True,
        )


def channel_axes(x: Tensor) -> tuple[int, ...]:
    """All axes but the channels'."""
    return (0, *range(2, x.dim())) if x.dim() > 1 else (0,)


def channel_mean(x: Tensor) -> Tensor:
    """Mean of every channel over samples and positions."""
    return x.mean(channel_axes(x)) if x.dim() else x


def channel_power(x: Tensor) -> Tensor:
    """Mean square of every channel over samples and positions."""
    if x.dim() < 3:
        return channel_mean(x.square())
    # Row by row and without a square in between, which takes a quarter of the time.
    return torch.linalg.vector_norm(x.flatten(2), dim=2).square().mean(0) / math.prod(x.shape[2:])


def channel_variance(x: Tensor, mean: Tensor | None = None) -> Tensor:
    """Variance of every channel over samples and positions, whose mean may be known already."""
    # In two passes: torch's own takes ten times as long over these axes.
    return channel_power(x - per_channel(channel_mean(x) if mean is None else mean, x))


def product_variance(mean: Tensor, spread: Tensor, size: Tensor | float, nu: Tensor | float) -> Tensor:
    """Variance of ``mu (1 + noise) x``: ``nu (mu E[x])^2 + (1 + nu) mu^2 Var[x]``.

    Args:
        mean: Mean of the product, ``mu E[x]``.
        spread: Variance of the signal.
        size: Mean ``mu`` of the factor.
        nu: Variance of the factor over its squared mean.
    """
    return mean.square().mul_(nu).add_(spread * (size**2 * (1 + nu)))


def affine(x: Tensor, factor: Tensor, term: Tensor) -> Tensor:
    """``factor x + term``, one factor and term per channel."""
    # In two steps: addcmul takes twice as long where it has to broadcast.
    return (x * per_channel(factor, x)).add_(per_channel(term, x))


def per_channel(values: Tensor, like: Tensor) -> Tensor:
    """One value per channel, shaped to be broadcast against a signal."""
    if values.dim() != 1 or like.dim() < 2:
        return values
    return values.reshape(1, -1, *(1,) * (like.dim() - 2))


def even(draw: Tensor) -> Tensor:
    """A variance map that says no more than the draw: the same everywhere in a channel."""
    return per_channel(channel_power(draw), draw).expand_as(draw)
