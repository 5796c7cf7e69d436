"""Norms as anchors: their stored statistics say what the weights made of the data."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ._signal import (
    SURE,
    TINY,
    Line,
    Mask,
    Signal,
    channel_mean,
    channel_variance,
    per_channel,
    product_variance,
)

_TRUST = 0.01  # at least: squared error of the noise's size over that of the data's, both relative
_STEPS = 6  # of Newton's method
_MOST_CHANGE = 14.0  # of the logarithm of a variance


@dataclass(slots=True)
class Anchor:
    """One call of a norm, all figures one value per channel.

    Attributes:
        name: Module path of the norm.
        channels_mean: Mean of its input in training: the running mean, or as propagated without an anchor.
        variance: Total variance of its input in training: the running variance, or as propagated.
        noise: Noise variance of its input in training.
        centre: Mean of the propagated input before it was anchored.
        gain: What its deviation was multiplied with so that data and noise together have `variance`.
        anchored: Whether stored statistics were used.
        scale: Factor that put a made-up input on the scale of the first norm.
        louder: What the noise was multiplied with, near 1 unless nearly all of `variance` is noise.
        stand_in: What stood in the place of an unknown input.
        doubts: Operations upstream whose treatment is approximate.
        clean: Whether its statistics are known to be those of the data alone, re-estimated without noise.
        first: Whether no anchor is upstream, so that the made-up input had no scale yet.
        eps: What the norm adds to a variance.
    """

    name: str
    channels_mean: Tensor
    variance: Tensor
    noise: Tensor
    centre: Tensor
    gain: Tensor
    anchored: bool
    doubts: frozenset[str]
    scale: Tensor | None = None
    louder: Tensor | None = None
    stand_in: Tensor | None = None
    clean: bool = False
    first: bool = False
    eps: float = 0.0

    def line(self) -> tuple[Tensor, Tensor]:
        """Factor and term per channel that put a propagated value on the scale of the data."""
        gain = self.gain if self.scale is None else self.gain * self.scale
        return gain, self.channels_mean - self.centre * gain

    def norm(self, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
        """Factor and term per channel of the norm in training."""
        scale = (self.variance + eps).rsqrt() * (1 if weight is None else weight)
        return scale, (0 if bias is None else bias) - self.channels_mean * scale


def anchor(
    name: str,
    x: Signal,
    mean: Tensor | None,
    variance: Tensor | None,
    frozen: Anchor | None,
    *,
    clean: Tensor | None = None,
) -> tuple[Anchor, Signal, Line | None]:
    """Anchors the input of a norm on its running statistics.

    The noise of the propagated input is right, its data part has the right shape but not the right size:
    ``V = gain^2 Var(data) + noise`` gives the gain, as long as not nearly all of V is noise. Behind dropout
    that stands directly in front, ``V = (1 + nu) t + nu M^2`` gives the variance t in front of the dropout,
    whose own data part is anchored. Statistics that were re-estimated without noise are those of a network in
    which every norm upstream saw the data alone, too: their gain is known from a pass without noise.

    Args:
        name: Module path of the norm.
        x: Its input.
        mean: Running mean, None for a norm whose statistics say nothing.
        variance: Running variance, likewise.
        frozen: The anchor of an earlier pass whose gain is to be used, with new noise.
        clean: Its gain where its statistics were re-estimated without noise.

    Returns:
        The anchor, a signal, and the line that makes it the input put right; None if it is that already.
    """
    mask = x.mask if x.mask is not None and x.mask.fresh and not x.mask.uneven else None
    target = x if mask is None else mask.base
    centre = channel_mean(target.mean)
    data, noise = channel_variance(target.mean, centre), target.noise()
    scale = louder = None
    if frozen is not None:
        scale = frozen.scale
        if scale is not None:
            target = _scaled(target, scale, centre)
            data, noise = scale**2 * data, scale**2 * noise
        gain = frozen.gain
        fixed_mean = frozen.channels_mean + (centre - frozen.centre) * gain
    elif mean is None or variance is None:
        fixed_mean, gain = centre, torch.ones_like(centre)
    else:
        fixed_mean = mean
        wanted = variance if mask is None else _before(mask, mean, variance)
        if target.floating and target.noisy and clean is None:
            # The made-up input has no scale of its own: all channels take one factor, noise included.
            factor = wanted.mean() / (data + noise).mean().clamp_min(TINY)
            scale = factor.sqrt()
            target = _scaled(target, scale, centre)
            data, noise = factor * data, factor * noise
        gain, louder = (clean, None) if clean is not None else _shares(data, noise, wanted, _trust(target))
    if frozen is not None:
        louder = frozen.louder
    learned = data + noise if variance is None else variance
    made = Anchor(name, fixed_mean, learned, noise, centre, gain, mean is not None, x.doubts, scale, louder)
    made.clean = clean is not None
    made.first = target.floating
    loudness = torch.ones_like(gain) if louder is None else louder
    line: Line | None = Line(gain, fixed_mean - centre * gain, loudness)
    target = target.but(floating=False, unsure=SURE, sized=target.sized)
    data, made.noise = gain.square() * data, loudness.square() * noise
    if mask is not None:
        target = _masked_again(x, mask, target.moved(line))
        data = data * torch.as_tensor(mask.factor_mean).to(data).square()
        made.noise, line = target.noise(), None
    if variance is None or frozen is not None or made.clean:
        made.variance = data + made.noise
    return made, target, line


def _trust(x: Signal) -> Tensor:
    """Squared error of the noise's size over that of the data's, both relative."""
    data, noise = map(torch.as_tensor, x.unsure)
    return (noise / data.clamp_min(TINY)).clamp(_TRUST, 1)


def _shares(data: Tensor, noise: Tensor, wanted: Tensor, trust: Tensor) -> tuple[Tensor, Tensor]:
    """Factors for the deviations of data and noise that bring their variances to a known sum.

    The size of fresh noise is known far better than that of the data, but not without error: taken off as it
    stands where it is nearly all, it would leave anything or nothing for the data. Noise that units share
    went the way of the data, and where made-up data come out too small, so does that noise. So the likeliest
    changes are made, of errors whose covariance is ``[[1, trust], [trust, trust]]`` in logarithms.
    """
    there = data > TINY
    wanted = wanted.clamp_min(TINY)  # trained networks have dead channels, whose variance is exactly 0
    changes = [torch.zeros_like(data), torch.zeros_like(data)]  # of the logarithms of both variances
    for _ in range(_STEPS):
        parts = [
            part.clamp_min(TINY) * change.exp() for part, change in zip((data, noise), changes, strict=True)
        ]
        total = parts[0] + parts[1]
        shares = [parts[0] / total, parts[1] / total]
        # What is like data in the noise is wrong by as much as the data are.
        steps = [shares[0] + trust * shares[1], trust]
        pull = (wanted / total).log() / (shares[0] * steps[0] + shares[1] * steps[1])
        changes = [change + pull * step for change, step in zip(changes, steps, strict=True)]
    gain, louder = ((change.clamp(-_MOST_CHANGE, _MOST_CHANGE) / 2).exp() for change in changes)
    one = torch.ones_like(gain)
    return torch.where(there, gain, one), torch.where(there & (noise > TINY), louder, one)


def _scaled(x: Signal, factor: Tensor, centre: Tensor) -> Signal:
    middle = per_channel(centre, x.mean)
    return x.but(
        mask=None,
        mean=middle + (x.mean - middle) * factor,
        variance=None if x.variance is None else x.variance * factor**2,
        draw=None if x.draw is None else x.draw * factor,
    )


def _before(mask: Mask, mean: Tensor, variance: Tensor) -> Tensor:
    """Variance in front of a dropout, from mean and variance behind it."""
    nu, size = mask.factor_noise, mask.factor_mean
    return torch.maximum((variance - nu * mean.square()) / ((1 + nu) * size**2), 1e-3 * variance)


def _masked_again(x: Signal, mask: Mask, target: Signal) -> Signal:
    """The same draw of the same mask over the anchored signal in front of it."""
    nu, size = (
        per_channel(figure, x.mean) if isinstance(figure, Tensor) else figure
        for figure in (mask.factor_noise, mask.factor_mean)
    )
    factor = mask.factor
    if factor is None:
        factor = (x.total / mask.base.total).nan_to_num_(0.0, 0.0, 0.0)
    mean = size * target.mean
    again = x.but(
        mean=mean,
        variance=product_variance(mean, target.spread(), size, nu),
        draw=(factor * target.total).sub_(mean),
        mask=replace(mask, base=target),
        floating=False,
        unsure=SURE,
    )
    if again.draw is None or not again.exact:
        return again
    return again.but(draw=again.draw * per_channel(again.chance(), mean), sized=True)
