"""Moments of an activation of a Gaussian, by quadrature that finds kinks and jumps by itself."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from varshift._arguments import finite, positive

_REACH = 14.0  # standard deviations on either side; the density beyond is below 1e-43
_PANELS = 28  # width 1 at first, edges at the whole numbers, where most activations have their kinks
_NODES, _WEIGHTS = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(20))
_TOLERANCE = 1e-14  # per panel, relative to the whole integral
_RESIDUE = 1e-10  # what panels of no width may still disagree by
_MAX_HALVINGS = 52
_MAX_PANELS = 1 << 17


class ActivationMoments(NamedTuple):
    """Moments of ``f(X)`` for a Gaussian X.

    Attributes:
        mean: ``E[f(X)]``.
        second: ``E[f(X)^2]``.
        slope: ``E[f'(X)^2]`` with the derivative that autograd uses (a surrogate, if the activation has
            one; a jump counts nothing); NaN where autograd knows no derivative.

    Example:
        >>> ActivationMoments(mean=0.5, second=1.0, slope=0.0).variance
        0.75
    """

    mean: float
    second: float
    slope: float

    @property
    def variance(self) -> float:
        """``Var f(X)``."""
        return max(self.second - self.mean**2, 0.0)


def activation_moments(
    activation: str | Callable[[torch.Tensor], torch.Tensor], mean: float = 0.0, std: float = 1.0
) -> ActivationMoments:
    r"""Mean, second moment and mean squared slope of an elementwise activation of a Gaussian.

    .. math:: E[f(X)], \quad E[f(X)^2], \quad E[f'(X)^2], \qquad X \sim N(\mathrm{mean}, \mathrm{std}^2)

    By Gauss-Legendre quadrature in float64 on panels that are halved until both halves agree with the whole,
    so that kinks and jumps need not be known. The error is below 1e-12 for torch's activations.

    Args:
        activation: A function of tensors, a module (a copy of it in eval mode and float64 is used), or the
            name of a function of ``torch.nn.functional`` or ``torch``, ``"linear"`` being the identity.
        mean: Mean of the Gaussian.
        std: Its standard deviation, above 0.

    Raises:
        ValueError: If the activation is unknown, not elementwise, random, or has no finite moments.

    Example:
        >>> from varshift.functional import activation_moments
        >>> moments = activation_moments("relu")
        >>> print(f"{moments.mean:.6f} {moments.second:.6f} {moments.slope:.6f}")
        0.398942 0.500000 0.500000
    """
    mean, std = finite("mean", mean), positive("std", std)
    function = _function(activation)
    with torch.inference_mode(False), torch.enable_grad():
        _check_elementwise(activation, function, mean, std)
        edges = torch.linspace(-_REACH, _REACH, _PANELS + 1, dtype=torch.float64, device="cpu")
        left, right = edges[:-1], edges[1:]
        whole = _integrals(function, left, right, mean, std)
        total, size = whole.new_zeros(3), whole.new_zeros(3)
        for halving in range(_MAX_HALVINGS + 1):
            middle = (left + right) / 2
            halves = _integrals(function, torch.cat([left, middle]), torch.cat([middle, right]), mean, std)
            first, second = halves.chunk(2)
            apart = (first + second - whole).abs()
            agree = ((apart <= _TOLERANCE * (size + halves.abs().sum(0))) | apart.isnan()).all(1)
            if halving == _MAX_HALVINGS or len(left) > _MAX_PANELS:
                if (apart.sum(0) > _RESIDUE * size).any():
                    raise ValueError(f"activation={activation!r} must have finite moments under a Gaussian.")
                agree = torch.ones_like(agree)  # what is left has no width
            total = total + (first + second)[agree].sum(0)
            size = size + (first.abs() + second.abs())[agree].sum(0)
            open_ = ~agree
            if not open_.any():
                break
            left, right = (
                torch.cat([left[open_], middle[open_]]),
                torch.cat([middle[open_], right[open_]]),
            )
            whole = torch.cat([first[open_], second[open_]])
    moments = ActivationMoments(*total.tolist())
    if not (math.isfinite(moments.mean) and math.isfinite(moments.second)):
        raise ValueError(f"activation={activation!r} must have finite moments under a Gaussian.")
    return moments


def activation_gain(activation: str | Callable[[torch.Tensor], torch.Tensor]) -> float:
    r"""The factor that gives an activation of a standard Gaussian unit variance.

    .. math:: \gamma = 1 / \sqrt{\operatorname{Var} f(Z)}, \qquad Z \sim N(0, 1)

    The activation gain of normaliser-free networks; ``sqrt(2 / (1 - 1 / pi))`` for ReLU.

    Args:
        activation: As for `activation_moments`.

    Raises:
        ValueError: If the activation is constant or has no moments.

    Reference:
        A. Brock, S. De, S. L. Smith, "Characterizing signal propagation to close the performance gap in
        unnormalized ResNets", arXiv 2101.08692. The paper's code holds sampled constants, up to 9e-4 off the
        exact ones given here.

    Example:
        >>> from varshift.functional import activation_gain
        >>> print(f"{activation_gain('relu'):.9f}")
        1.712858550
    """
    variance = activation_moments(activation).variance
    if variance <= 1e-20:
        raise ValueError(f"activation={activation!r} must not be constant: its variance has no inverse.")
    return variance**-0.5


def _function(activation: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """The activation as a function of float64 tensors."""
    if isinstance(activation, nn.Module):
        return copy.deepcopy(activation).to(device="cpu", dtype=torch.float64).eval()
    if isinstance(activation, str):
        if activation in ("linear", "identity"):
            return torch.clone
        found = getattr(F, activation, None) or getattr(torch, activation, None)
        if not callable(found):
            raise ValueError(
                f"activation={activation!r} must be the name of a function of torch.nn.functional or torch, "
                "or 'linear'; or pass the function itself."
            )
        return cast("Callable[[torch.Tensor], torch.Tensor]", found)
    if not callable(activation):
        raise ValueError(f"activation={activation!r} must be a function of tensors, a module or a name.")
    return cast("Callable[[torch.Tensor], torch.Tensor]", activation)


def _check_elementwise(activation: object, function: Callable, mean: float, std: float) -> None:
    """Raises ValueError unless an output element depends on its own input element only, and always alike."""
    points = mean + std * torch.linspace(-3, 3, 31, dtype=torch.float64, device="cpu")
    try:
        out, part = function(points.clone()), function(points[7:20].clone())
    except (TypeError, RuntimeError, ValueError, IndexError) as problem:
        raise ValueError(
            f"activation={activation!r} must take a tensor of any shape and return one: {problem}"
        ) from problem
    alike = (
        isinstance(out, torch.Tensor)
        and out.shape == points.shape
        and torch.allclose(out[7:20].double(), part.double(), rtol=1e-9, atol=1e-12, equal_nan=True)
    )
    if not alike:
        raise ValueError(
            f"activation={activation!r} must be elementwise and free of noise: one output for each input."
        )


def _integrals(
    function: Callable, left: torch.Tensor, right: torch.Tensor, mean: float, std: float
) -> torch.Tensor:
    """Integrals of ``f``, ``f^2`` and ``f'^2`` times the density over each panel, one row per panel."""
    half = (right - left)[:, None] / 2
    z = left[:, None] + half * (1 + _NODES)
    x = (mean + std * z).requires_grad_()
    value = function(x.clone())  # a clone, for activations that work in place
    if value.requires_grad:
        (slope,) = torch.autograd.grad(value.sum(), x, allow_unused=True)
        slope = torch.zeros_like(x) if slope is None else slope
    else:
        slope = torch.full_like(x, math.nan)
    weight = half * _WEIGHTS * torch.exp(-(z.detach() ** 2) / 2) / math.sqrt(2 * math.pi)
    value = value.detach().to(torch.float64)
    return torch.stack([(weight * part).sum(1) for part in (value, value**2, slope**2)], 1)
