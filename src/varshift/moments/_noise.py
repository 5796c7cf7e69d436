"""Noise sites: what a signal becomes where noise meets it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from varshift.flow import NoiseSite
from varshift.theory import noise_variance

from ._signal import Mask, Signal, product_variance

_TWO_POINT = ("dropout", "channel_dropout", "drop_path", "drop_block")
_MULTIPLICATIVE = (*_TWO_POINT, "uniform", "gaussian")
ALPHA = -1.7580993408473766  # what alpha dropout puts in place of a dropped unit
_MANY = 64  # values of one draw from which chance needs no help


def multiplies(site: NoiseSite) -> bool:
    """Whether a site multiplies its signal by independent noise of known strength."""
    return site.kind in _MULTIPLICATIVE and site.rate is not None and not site.additive


def factor_shape(site: NoiseSite, shape: torch.Size, mask: tuple[int, ...] | None) -> tuple[int, ...]:
    """Shape of the noise: how many elements share one draw.

    Args:
        site: The noise site.
        shape: Shape of the signal.
        mask: Shape of the random operand in the network, where there is one.
    """
    if mask is not None and len(mask) == len(shape) and site.kind != "drop_block":
        return mask
    rest = (1,) * (len(shape) - 2)
    if site.kind == "channel_dropout":
        return (*shape[:2], *rest)
    if site.kind == "drop_path":
        return (shape[0], 1, *rest) if len(shape) > 1 else tuple(shape)
    return tuple(shape)


def multiply(
    x: Signal,
    site: NoiseSite,
    rate: float,
    shape: tuple[int, ...],
    mean: float | Tensor,
    drawn: Tensor | None = None,
) -> Signal:
    """Multiplies a signal by noise: ``nu`` is the variance of the factor relative to its mean.

    ``mean' = mu mean``, ``variance' = mu^2 (variance (1 + nu) + nu mean^2)``.

    Args:
        x: The signal.
        site: The noise site.
        rate: Its rate, which may differ from the network's.
        shape: Shape of the noise.
        mean: Mean ``mu`` of the factor, one number or a map.
        drawn: The factor as the network itself draws it over its mean, for noise whose neighbours are alike.
    """
    if rate <= 0:
        return x.but(mean=mean * x.mean, draw=None if x.draw is None else mean * x.draw, mask=None)
    nu = noise_variance(site.kind, rate)
    if drawn is None:
        factor = _factor(site.kind, rate, shape, x.mean)
    else:
        factor, nu = _rescaled(drawn, nu / noise_variance(site.kind, site.rate or rate))
    mask = None
    if site.kind in _TWO_POINT and site.kind != "drop_block":
        mask = Mask(0.0, float(mean) / (1 - rate), rate, x, shape=shape)
    middle = mean * x.mean
    return x.but(
        mean=middle,
        variance=product_variance(middle, x.spread(), mean, nu),
        draw=(mean * factor * x.total).sub_(middle),
        mask=mask,
        exact=site.kind != "drop_block" and _exact(x),
        independent=_own(x, shape),
    )


def add(x: Signal, site: NoiseSite, rate: float) -> Signal:
    """Adds noise: Gaussian of standard deviation `rate`, or uniform of half-width `rate`."""
    if site.kind == "gaussian":
        noise, variance = rate * torch.randn_like(x.mean), rate**2
    else:
        noise, variance = rate * (2 * torch.rand_like(x.mean) - 1), rate**2 / 3
    draw = noise if x.draw is None else x.draw + noise
    return x.but(
        variance=x.spread() + variance,
        draw=draw,
        mask=None,
        exact=_exact(x),
        independent=_own(x, tuple(x.mean.shape)),
    )


def alpha_dropout(x: Signal, rate: float, shape: tuple[int, ...]) -> Signal:
    """Alpha dropout: dropped units take a negative value; mean 0 and variance 1 are kept by an affine map."""
    keep = 1 - rate
    scale = (keep + ALPHA**2 * keep * rate) ** -0.5
    shift = -scale * rate * ALPHA
    kept = (torch.rand(shape, device=x.mean.device) < keep).to(x.mean.dtype)
    spread = x.spread()
    inner = keep * x.mean + rate * ALPHA
    second = keep * (spread + x.mean.square()) + rate * ALPHA**2
    mean = scale * inner + shift
    total = scale * (kept * x.total + (1 - kept) * ALPHA) + shift
    return x.but(
        mean=mean,
        variance=scale**2 * (second - inner.square()).clamp_min(0),
        draw=total - mean,
        mask=None,
        exact=_exact(x),
        independent=_own(x, shape),
    )


def _exact(x: Signal) -> bool:
    return x.exact or not x.noisy


def _own(x: Signal, shape: tuple[int, ...]) -> bool:
    """Whether every element has noise of its own behind noise of this shape."""
    return (x.independent or not x.noisy) and math.prod(shape) == x.mean.numel()


def _rescaled(drawn: Tensor, ratio: float) -> tuple[Tensor, float]:
    """The network's own draw, with mean 1 and its variance times `ratio`; and that variance.

    Blocks are cut off at borders and overlap, so that their variance is not that of their nominal rate.
    """
    relative = drawn - 1
    return 1 + relative * ratio**0.5, ratio * float(relative.square().mean())


def _factor(kind: str, rate: float, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """One draw of the factor, with mean 1."""
    options = {"dtype": like.dtype, "device": like.device}
    if kind == "gaussian":
        return 1 + rate * torch.randn(shape, **options)
    if kind == "uniform":
        return 1 + rate * (2 * torch.rand(shape, **options) - 1)
    samples, others = shape[0], math.prod(shape[1:])
    if others >= _MANY * 64 or samples < 2:
        return (torch.rand(shape, **options) < 1 - rate) / (1 - rate)
    # Few draws: every unit is dropped in the same share of the samples, and the two values are set so that
    # mean and variance are exact.
    dropped = min(max(round(samples * rate), 1), samples - 1)
    share, variance = dropped / samples, rate / (1 - rate)
    low = 1 - math.sqrt(variance * (1 - share) / share)
    high = 1 + math.sqrt(variance * share / (1 - share))
    order = torch.rand((samples, others), **options).argsort(0).argsort(0)
    return torch.where(order < dropped, low, high).reshape(shape).to(like.dtype)
