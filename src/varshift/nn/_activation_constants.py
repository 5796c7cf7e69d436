"""The two constants of an activation that weight initialisation needs: exact ones, and those of the paper."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from varshift.functional import activation_moments

Nonlinearity = str | nn.Module | Callable[[Tensor], Tensor] | None
Constants = Literal["exact", "paper"]


class ActivationConstants(NamedTuple):
    """Second moments of an activation of a standard normal variable.

    Attributes:
        square: ``E[f(z)^2]``.
        slope: ``E[f'(z)^2]``, NaN where autograd knows no derivative.

    Example:
        >>> from varshift.nn.init import activation_constants
        >>> activation_constants("identity")
        ActivationConstants(square=1.0, slope=1.0)
    """

    square: float
    slope: float


_UNKNOWN = ActivationConstants(0.5, 0.5)
_PRINTED = {
    "identity": ActivationConstants(1.0, 1.0),
    "linear": ActivationConstants(1.0, 1.0),
    "relu": ActivationConstants(0.5, 0.5),
    "soi": ActivationConstants(0.5, 0.5),
    "gelu": ActivationConstants(0.425, 0.444),
    "elu": ActivationConstants(0.645, 0.671),
    "tanh": ActivationConstants(0.394, 0.216),
    "leaky_relu": ActivationConstants(0.5, 0.5),
}
_FUNCTIONS = {
    F.relu: "relu",
    torch.relu: "relu",
    F.gelu: "gelu",
    F.elu: "elu",
    F.tanh: "tanh",
    torch.tanh: "tanh",
    F.leaky_relu: "leaky_relu",
}


def activation_constants(nonlinearity: Nonlinearity, constants: Constants = "exact") -> ActivationConstants:
    """``E[f(z)^2]`` and ``E[f'(z)^2]`` of an activation, with ``z`` standard normal.

    Args:
        nonlinearity: A name of torch, ``"identity"``, any elementwise function or module, or None for
            unknown, which the paper gives 0.5 for both. RReLU counts with its slopes random, as in training.
        constants: ``"exact"`` for quadrature, to 1e-8 and better; ``"paper"`` for the values that the paper
            prints (leaky ReLU: that its code uses; ``"soi"`` is GELU's stochastic map).

    Raises:
        ValueError: If the activation is unknown, not elementwise or random, or the paper prints nothing for
            it.

    Reference:
        D. Hendrycks, K. Gimpel, arXiv 1607.02488, its table of constants. Its slopes of tanh and GELU come
        from an average of simulated values and do not hold: 0.216 against 0.46440 and 0.444 against 0.45585.

    Example:
        >>> from varshift.nn.init import activation_constants
        >>> exact, paper = activation_constants("tanh"), activation_constants("tanh", "paper")
        >>> print(f"{exact.slope:.6f} {paper.slope}")
        0.464403 0.216
    """
    if constants not in ("exact", "paper"):
        raise ValueError(f"constants={constants!r} must be 'exact' or 'paper'.")
    if nonlinearity is None:
        return _UNKNOWN
    if constants == "paper":
        name = _printed_name(nonlinearity)
        if name not in _PRINTED:
            known = ", ".join(_PRINTED)
            raise ValueError(f"nonlinearity={nonlinearity!r}: the paper prints constants for {known} only.")
        return _PRINTED[name]
    if isinstance(nonlinearity, str):
        return _of_name(nonlinearity)
    return _exact(nonlinearity)


@lru_cache(maxsize=64)
def _of_name(name: str) -> ActivationConstants:
    return _exact(nn.RReLU() if name == "rrelu" else name)


def _exact(nonlinearity: str | Callable[[Tensor], Tensor]) -> ActivationConstants:
    if isinstance(nonlinearity, nn.RReLU):
        low, high = nonlinearity.lower, nonlinearity.upper
        both = (1 + (low * low + low * high + high * high) / 3) / 2
        return ActivationConstants(both, both)
    moments = activation_moments(nonlinearity)
    return ActivationConstants(moments.second, moments.slope)


def _printed_name(nonlinearity: object) -> str:
    """The paper's name of an activation with the parameters that the paper uses; empty for all others."""
    if isinstance(nonlinearity, str):
        return nonlinearity
    if isinstance(nonlinearity, nn.GELU):
        return "gelu" if nonlinearity.approximate == "none" else ""
    if isinstance(nonlinearity, nn.ELU):
        return "elu" if nonlinearity.alpha == 1 else ""
    if isinstance(nonlinearity, nn.LeakyReLU):
        return "leaky_relu" if nonlinearity.negative_slope == 0.01 else ""
    for kind, name in ((nn.Identity, "identity"), (nn.ReLU, "relu"), (nn.Tanh, "tanh")):
        if type(nonlinearity) is kind:
            return name
    return next((name for function, name in _FUNCTIONS.items() if function is nonlinearity), "")
