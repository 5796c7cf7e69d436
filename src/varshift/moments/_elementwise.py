"""Elementwise functions of a noisy signal: the registry of closed forms, and quadrature for all others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ._gaussian import (
    Moments,
    Polynomial,
    exponential_moments,
    gelu_moments,
    leaky_relu_moments,
    piecewise_moments,
    quadrature_moments,
)
from ._signal import Mask, Signal, per_channel

Arguments = dict[str, Any]
# None: the arguments are not ones the closed form is for.
Rule = Callable[[Tensor, Tensor, Arguments], Moments | None]

CLOSED_FORMS: dict[str, Rule] = {}
_IDENTITY: Polynomial = (0.0, 1.0)
_PIECE = 2**17  # elements that a thread works on at a time
_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772, 1.0507009873554805


def closed_form(*names: str) -> Callable[[Rule], Rule]:
    """Registers mean and variance of an operator for Gaussian inputs, under its names."""

    def register(rule: Rule) -> Rule:
        CLOSED_FORMS.update(dict.fromkeys(names, rule))
        return rule

    return register


@closed_form("relu")
def _relu(mean: Tensor, variance: Tensor, arguments: Arguments) -> Moments:
    return leaky_relu_moments(mean, variance)


@closed_form("leaky_relu", "prelu", "_prelu_kernel")
def _leaky_relu(mean: Tensor, variance: Tensor, arguments: Arguments) -> Moments:
    slope = arguments.get("weight", arguments.get("negative_slope", 0.01))
    if isinstance(slope, Tensor):
        slope = per_channel(slope.flatten(), mean) if slope.numel() > 1 else slope.reshape(())
    return leaky_relu_moments(mean, variance, slope)


@closed_form("relu6")
def _relu6(mean: Tensor, variance: Tensor, arguments: Arguments) -> Moments:
    return _clipped(mean, variance, 0.0, 6.0)


@closed_form("hardtanh")
def _hardtanh(mean: Tensor, variance: Tensor, arguments: Arguments) -> Moments:
    return _clipped(mean, variance, float(arguments.get("min_val", -1)), float(arguments.get("max_val", 1)))


@closed_form("clamp", "clamp_min", "clamp_max")
def _clamp(mean: Tensor, variance: Tensor, arguments: Arguments) -> Moments | None:
    low, high = arguments.get("min"), arguments.get("max")
    if not all(limit is None or isinstance(limit, (int, float)) for limit in (low, high)):
        return None
    if low is not None and high is not None and low > high:
        return None
    return _clipped(mean, variance, low, high)


@closed_form("hardsigmoid")
def _hardsigmoid(mean: Tensor, variance: Tensor, arguments: Arguments) -> Moments:
    return piecewise_moments(mean, variance, (-3.0, 3.0), ((0.0,), (0.5, 1 / 6), (1.0,)))


@closed_form("hardswish")
def _hardswish(mean: Tensor, variance: Tensor, arguments: Arguments) -> Moments:
    return piecewise_moments(mean, variance, (-3.0, 3.0), ((0.0,), (0.0, 0.5, 1 / 6), _IDENTITY))


@closed_form("abs")
def _abs(mean: Tensor, variance: Tensor, arguments: Arguments) -> Moments:
    return piecewise_moments(mean, variance, (0.0,), ((0.0, -1.0), _IDENTITY))


@closed_form("square")
def _square(mean: Tensor, variance: Tensor, arguments: Arguments) -> Moments:
    return piecewise_moments(mean, variance, (), ((0.0, 0.0, 1.0),))


@closed_form("threshold")
def _threshold(mean: Tensor, variance: Tensor, arguments: Arguments) -> Moments:
    limit, value = float(arguments["threshold"]), float(arguments["value"])
    return piecewise_moments(mean, variance, (limit,), ((value,), _IDENTITY))


@closed_form("hardshrink")
def _hardshrink(mean: Tensor, variance: Tensor, arguments: Arguments) -> Moments:
    limit = float(arguments.get("lambd", 0.5))
    return piecewise_moments(mean, variance, (-limit, limit), (_IDENTITY, (0.0,), _IDENTITY))


@closed_form("softshrink")
def _softshrink(mean: Tensor, variance: Tensor, arguments: Arguments) -> Moments:
    limit = float(arguments.get("lambd", 0.5))
    return piecewise_moments(mean, variance, (-limit, limit), ((limit, 1.0), (0.0,), (-limit, 1.0)))


@closed_form("sign")
def _sign(mean: Tensor, variance: Tensor, arguments: Arguments) -> Moments:
    return piecewise_moments(mean, variance, (0.0,), ((-1.0,), (1.0,)))


@closed_form("elu")
def _elu(mean: Tensor, variance: Tensor, arguments: Arguments) -> Moments:
    alpha, scale = float(arguments.get("alpha", 1)), float(arguments.get("scale", 1))
    return exponential_moments(mean, variance, scale, scale * alpha, float(arguments.get("input_scale", 1)))


@closed_form("celu")
def _celu(mean: Tensor, variance: Tensor, arguments: Arguments) -> Moments:
    alpha = float(arguments.get("alpha", 1))
    return exponential_moments(mean, variance, 1.0, alpha, 1 / alpha)


@closed_form("selu")
def _selu(mean: Tensor, variance: Tensor, arguments: Arguments) -> Moments:
    return exponential_moments(mean, variance, _SELU_SCALE, _SELU_SCALE * _SELU_ALPHA)


@closed_form("gelu")
def _gelu(mean: Tensor, variance: Tensor, arguments: Arguments) -> Moments | None:
    return gelu_moments(mean, variance) if arguments.get("approximate", "none") == "none" else None


def _clipped(mean: Tensor, variance: Tensor, low: float | None, high: float | None) -> Moments:
    knots = [float(limit) for limit in (low, high) if limit is not None]
    pieces: list[Polynomial] = [_IDENTITY]
    if low is not None:
        pieces.insert(0, (float(low),))
    if high is not None:
        pieces.append((float(high),))
    return piecewise_moments(mean, variance, knots, pieces)


def apply(name: str, function: Callable[[Tensor], Tensor], arguments: Arguments, x: Signal) -> Signal | None:
    """The image of a noisy signal under an elementwise function; None where its moments do not exist.

    Args:
        name: The operator.
        function: The operator as a function of its signal alone.
        arguments: Its arguments by name.
        x: The signal; behind two-point noise both of its parts are followed by themselves.
    """
    rule = CLOSED_FORMS.get(name)

    def whole(mean: Tensor, variance: Tensor) -> Moments:
        found = rule(mean, variance, arguments) if rule else None
        return quadrature_moments(function, mean, variance) if found is None else found

    apart = not any(isinstance(value, Tensor) for value in arguments.values())
    moments = _in_pieces(whole) if apart else whole
    mean, variance = moments(x.mean, x.spread()) if x.mask is None else _mixture(x.mask, moments)
    total = function(x.total)
    # Where a mean does not exist, a variance does not either.
    if mean.shape != total.shape or not bool(torch.isfinite(variance.sum())):
        return None
    # Behind a mask both values are known; elsewhere the Gaussian is an assumption.
    exact = x.mask is not None and not x.mask.base.noisy and x.mask.other_noise is None
    return x.but(mean=mean, variance=variance, draw=total.sub_(mean), mask=None, exact=exact)


def _in_pieces(moments: Callable[[Tensor, Tensor], Moments]) -> Callable[[Tensor, Tensor], Moments]:
    """The same for large tensors piece by piece: what lies in between then stays in the processor's cache."""

    def found(mean: Tensor, variance: Tensor) -> Moments:
        count, size = mean.numel(), _PIECE * torch.get_num_threads()
        if count < 2 * size or not mean.is_cpu or mean.shape != variance.shape:
            return moments(mean, variance)
        first, second = (torch.empty(mean.shape, dtype=mean.dtype) for _ in range(2))
        pieces = [part.reshape(-1).split(size) for part in (mean, variance, first, second)]
        for *given, means, variances in zip(*pieces, strict=True):
            for target, part in zip((means, variances), moments(*given), strict=True):
                target.copy_(part)
        return first, second

    return found


def _mixture(mask: Mask, moments: Callable[[Tensor, Tensor], Moments]) -> Moments:
    base = mask.base
    spread = base.spread()
    rate, small, large = (
        per_channel(figure, spread) if isinstance(figure, Tensor) else figure
        for figure in (mask.probability, mask.low, mask.high)
    )
    like: Any = {"dtype": spread.dtype, "device": spread.device}
    whole = torch.ones((), **like)
    scale = whole if mask.scale is None else per_channel(mask.scale, spread)
    parts = []
    for factor in (small, large):
        if factor is small and _drops_to_constants(mask):
            # One value per channel. Where nothing is dropped it counts for nothing.
            mean = torch.zeros((1, *base.mean.shape[1:2], *(1,) * (base.mean.dim() - 2)), **like)
            variance = torch.zeros_like(mean)
        else:
            mean, variance = factor * scale * base.mean, (factor * scale).square() * spread
        if mask.shift is not None:
            mean = mean.add_(per_channel(mask.shift, mean))
        if mask.other_noise is not None:
            variance = variance.add_(mask.other_noise)
        parts.append(moments(mean, variance))
    (low_mean, low_variance), (high_mean, high_variance) = parts
    share = (1 - rate) * whole
    between = (high_mean - low_mean).square_().mul_(share * (1 - share))
    return torch.lerp(low_mean, high_mean, share), between.add_(
        torch.lerp(low_variance, high_variance, share)
    )


def _drops_to_constants(mask: Mask) -> bool:
    """Whether what is dropped becomes the same everywhere in a channel."""
    if mask.base.mean.dim() < 2 or mask.other_noise is not None:
        return False
    if mask.shift is not None and mask.shift.dim() > 1:
        return False
    if not isinstance(mask.low, Tensor) and not isinstance(mask.probability, Tensor):
        return mask.low == 0
    dropped = torch.as_tensor(mask.low == 0) | torch.as_tensor(mask.probability == 0)
    return bool(dropped.all())
