"""Noise sites: what a signal becomes where noise meets it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from varshift.flow import NoiseSite
from varshift.theory import noise_variance

from ._signal import TINY, Mask, Signal, product_variance

_TWO_POINT = ("dropout", "channel_dropout", "drop_path", "drop_block")
_MULTIPLICATIVE = (*_TWO_POINT, "uniform", "gaussian")
ALPHA = -1.7580993408473766  # what alpha dropout puts in place of a dropped unit
_FEW = 64  # values of one draw from which chance needs no help
_MANY = 256  # draws from which every position has an average of its own
_ALIKE = 0.1  # relative deviation of values that count as one


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
    mean: float,
) -> Signal:
    """Multiplies a signal by noise: ``nu`` is the variance of the factor relative to its mean.

    ``mean' = mu mean``, ``variance' = mu^2 (variance (1 + nu) + nu mean^2)``.

    Args:
        x: The signal.
        site: The noise site.
        rate: Its rate, which may differ from the network's.
        shape: Shape of the noise.
        mean: Mean ``mu`` of the factor.
    """
    if rate <= 0:
        return x.but(mean=mean * x.mean, draw=None if x.draw is None else mean * x.draw, mask=None)
    x = x.levelled()  # once: several concatenations may read it
    factor = mean * _factor(site.kind, rate, shape, x.mean)
    two_point = site.kind in _TWO_POINT
    mask = Mask(0.0, mean / (1 - rate), rate, x, shape=shape, factor=factor) if two_point else None
    result = _product(x, mean, noise_variance(site.kind, rate), factor, mask).levelled()
    return result.but(independent=_own(x, shape), sized=result.sized)


def drop_blocks(x: Signal, site: NoiseSite, rate: float, drawn: Tensor, draws: Tensor) -> Signal:
    """Multiplies a signal by noise whose neighbours are alike, which the network itself has to draw.

    Blocks are cut off at borders and overlap: neither mean nor variance is that of their nominal rate.

    Args:
        x: The signal.
        site: The noise site.
        rate: Its rate, which may differ from the network's.
        drawn: The factor of one pass.
        draws: Those of several.
    """
    axes = (
        (0, 1) if draws.dim() > 2 and draws.shape[0] * draws.shape[1] >= _MANY else tuple(range(draws.dim()))
    )
    mean = draws.mean(axes, keepdim=True).clamp_min(TINY)
    if rate <= 0:
        return x.but(mean=mean * x.mean, draw=None if x.draw is None else mean * x.draw, mask=None)
    louder = noise_variance(site.kind, rate) / noise_variance(site.kind, site.rate or rate)
    nu = (draws / mean - 1).square().mean(axes, keepdim=True) * louder
    relative = drawn / mean - 1
    relative = relative - relative.mean()
    # One draw of few samples drops more or less than the average.
    relative = relative * (nu.mean() / relative.square().mean().clamp_min(TINY)).sqrt()
    kept = draws[draws != 0]
    factor = mean * (1 + relative)
    mask = None
    if len(kept) and bool(kept.std() < _ALIKE * kept.mean().abs()):
        share = (draws == 0).to(mean.dtype).mean(axes, keepdim=True)
        low, high = (mean + (value - mean) * louder**0.5 for value in (0.0, kept.mean()))
        mask = Mask(low, high, share, x, factor=factor)
    return _product(x, mean, nu, factor, mask).but(independent=False)


def _product(
    x: Signal, mean: float | Tensor, nu: float | Tensor, factor: Tensor, mask: Mask | None
) -> Signal:
    middle = mean * x.mean
    return x.but(
        mean=middle,
        variance=product_variance(middle, x.spread(), mean, nu),
        draw=(factor * x.total).sub_(middle),
        mask=mask,
        exact=_exact(x),
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


def _factor(kind: str, rate: float, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """One draw of the factor, with mean 1."""
    options = {"dtype": like.dtype, "device": like.device}
    if kind == "gaussian":
        return 1 + rate * torch.randn(shape, **options)
    if kind == "uniform":
        return 1 + rate * (2 * torch.rand(shape, **options) - 1)
    samples, others = shape[0], math.prod(shape[1:])
    if others >= _FEW * 64 or samples < 2:
        return (torch.rand(shape, **options) < 1 - rate) / (1 - rate)
    # Few draws: every unit is dropped in the same share of the samples, and the two values are set so that
    # mean and variance are exact.
    dropped = min(max(round(samples * rate), 1), samples - 1)
    share, variance = dropped / samples, rate / (1 - rate)
    low = 1 - math.sqrt(variance * (1 - share) / share)
    high = 1 + math.sqrt(variance * share / (1 - share))
    order = torch.rand((samples, others), **options).argsort(0).argsort(0)
    return torch.where(order < dropped, low, high).reshape(shape).to(like.dtype)
