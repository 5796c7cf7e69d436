"""Elementwise functions of a noisy signal: the registry of closed forms, and quadrature for all others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ._gaussian import Moments, piecewise_linear_moments, quadrature_moments, relu_moments
from ._signal import Mask, Signal, per_channel

Arguments = dict[str, Any]
Rule = Callable[[Tensor, Tensor, Arguments], Moments]

CLOSED_FORMS: dict[str, Rule] = {}


def closed_form(*names: str) -> Callable[[Rule], Rule]:
    """Registers mean and second moment of an operator for Gaussian inputs, under its names."""

    def register(rule: Rule) -> Rule:
        CLOSED_FORMS.update(dict.fromkeys(names, rule))
        return rule

    return register


@closed_form("relu")
def _relu(mean: Tensor, variance: Tensor, arguments: Arguments) -> Moments:
    return relu_moments(mean, variance)


@closed_form("leaky_relu", "prelu", "_prelu_kernel")
def _leaky_relu(mean: Tensor, variance: Tensor, arguments: Arguments) -> Moments:
    # f = a x + (1 - a) relu(x), and f^2 = a^2 x^2 + (1 - a^2) relu(x)^2
    slope = arguments.get("weight", arguments.get("negative_slope", 0.01))
    if isinstance(slope, Tensor):
        slope = per_channel(slope.flatten(), mean) if slope.numel() > 1 else slope.reshape(())
    first, second = relu_moments(mean, variance)
    mean_square = mean * mean + variance
    return slope * mean + (1 - slope) * first, slope**2 * mean_square + (1 - slope**2) * second


@closed_form("relu6")
def _relu6(mean: Tensor, variance: Tensor, arguments: Arguments) -> Moments:
    return piecewise_linear_moments(mean, variance, (0.0, 6.0), (0.0, 1.0, 0.0), 0.0)


@closed_form("hardtanh")
def _hardtanh(mean: Tensor, variance: Tensor, arguments: Arguments) -> Moments:
    low, high = float(arguments.get("min_val", -1)), float(arguments.get("max_val", 1))
    return piecewise_linear_moments(mean, variance, (low, high), (0.0, 1.0, 0.0), low)


@closed_form("hardsigmoid")
def _hardsigmoid(mean: Tensor, variance: Tensor, arguments: Arguments) -> Moments:
    return piecewise_linear_moments(mean, variance, (-3.0, 3.0), (0.0, 1 / 6, 0.0), 0.0)


@closed_form("abs")
def _abs(mean: Tensor, variance: Tensor, arguments: Arguments) -> Moments:
    return piecewise_linear_moments(mean, variance, (0.0,), (-1.0, 1.0), 0.0)


def apply(name: str, function: Callable[[Tensor], Tensor], arguments: Arguments, x: Signal) -> Signal:
    """The image of a noisy signal under an elementwise function.

    Args:
        name: The operator.
        function: The operator as a function of its signal alone.
        arguments: Its arguments by name.
        x: The signal; behind two-point noise both of its parts are followed by themselves.
    """
    rule = CLOSED_FORMS.get(name)

    def moments(mean: Tensor, variance: Tensor) -> Moments:
        return rule(mean, variance, arguments) if rule else quadrature_moments(function, mean, variance)

    if x.mask is None:
        mean, second = moments(x.mean, x.spread())
    else:
        mean, second = _mixture(x.mask, moments)
    variance = (second - mean * mean).clamp_min(0)
    return x.but(mean=mean, variance=variance, draw=function(x.total) - mean, mask=None)


def _mixture(mask: Mask, moments: Callable[[Tensor, Tensor], Moments]) -> Moments:
    base = mask.base
    spread = base.spread()
    parts = []
    for factor, weight in ((mask.low, mask.probability), (mask.high, 1 - mask.probability)):
        mean, variance = factor * base.mean, factor**2 * spread
        if mask.scale is not None:
            scale = per_channel(mask.scale, mean)
            mean, variance = scale * mean, scale**2 * variance
        if mask.shift is not None:
            mean = mean + per_channel(mask.shift, mean)
        first, second = moments(mean, variance)
        parts.append((weight * first, weight * second))
    return parts[0][0] + parts[1][0], parts[0][1] + parts[1][1]
