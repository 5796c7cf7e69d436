"""What becomes of a call that makes noise, as data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from varshift import nn as layers
from varshift._arguments import between, non_negative
from varshift._errors import VarshiftError
from varshift.functional import gaussian_dropout, uniform_dropout

NoiseKind = Literal[
    "remove", "rate", "dropout", "uniform", "gaussian", "channel_dropout", "follow-mode", "rescale"
]
OTHER_NOISE: tuple[NoiseKind, ...] = ("dropout", "uniform", "gaussian", "channel_dropout")

_RANGES = {  # the least and the greatest value; None where the kind takes no value
    "remove": None,
    "rate": (0.0, 1.0),
    "dropout": (0.0, 1.0),
    "uniform": (0.0, 1.0),
    "gaussian": (0.0, math.inf),
    "channel_dropout": (0.0, 1.0),
    "follow-mode": None,
    "rescale": (0.0, math.inf),
}


@dataclass(frozen=True, slots=True)
class NoiseAction:
    """What becomes of a call that makes noise.

    Attributes:
        kind: ``"remove"`` (the input passes as it is), ``"rate"`` (the same noise at another rate),
            ``"dropout"``, ``"uniform"``, ``"gaussian"``, ``"channel_dropout"`` (noise of this kind instead),
            ``"follow-mode"`` (the same noise, in training only) or ``"rescale"`` (the same noise, divided in
            training by the mean of its factor).
        value: Drop probability, half-width of the uniform noise, standard deviation of the Gaussian noise, or
            the factor to divide by; None where the kind needs none.

    Raises:
        ValueError: If the value does not fit the kind.

    Example:
        >>> import torch
        >>> from varshift.fixes import NoiseAction
        >>> x = torch.ones(3)
        >>> NoiseAction("uniform", 0.1).act(x, training=False) is x
        True
    """

    kind: NoiseKind
    value: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in _RANGES:
            raise VarshiftError(f"kind={self.kind!r} is no action: expected one of {', '.join(_RANGES)}.")
        limits = _RANGES[self.kind]
        if limits is None:
            if self.value is not None:
                raise VarshiftError(f"value={self.value!r}: {self.kind!r} takes none.")
            return
        if self.value is None:
            raise VarshiftError(f"value=None: {self.kind!r} needs a number.")
        value = non_negative("value", self.value)
        if limits[1] < math.inf:
            between("value", value, *limits)
        if self.kind == "rescale" and value == 0:
            raise VarshiftError("value=0: noise whose factor has mean zero cannot be rescaled.")

    def act(self, input: Tensor, training: bool) -> Tensor:
        """Applies the noise that takes the place of a call: for ``"remove"`` and the kinds of noise.

        Args:
            input: The signal.
            training: Whether the call acts: its own argument of that name, else the mode of its module.

        Returns:
            The input itself, not a copy, where nothing acts; code that writes to the result relies on it.

        Raises:
            VarshiftError: For the kinds that keep the call; see `around`.
        """
        if self.kind == "remove":
            return input
        if self.kind not in OTHER_NOISE:
            raise VarshiftError(f"kind={self.kind!r} keeps the noise that is there: it makes none.")
        if not training or not self.value:
            return input
        if self.kind == "uniform":
            return uniform_dropout(input, self.value, True)
        if self.kind == "gaussian":
            return gaussian_dropout(input, self.value, True)
        if self.kind == "channel_dropout" and input.dim() > 2:
            return torch.feature_dropout(input, self.value, True)
        return nn.functional.dropout(input, self.value, True)

    def around(self, call: Callable[[], Tensor], input: Tensor, training: bool) -> Tensor:
        """What becomes of a call, for every kind but ``"rate"``, which only changes an argument of it.

        Args:
            call: Makes the call as it was.
            input: Its signal.
            training: As for `act`.
        """
        if self.kind == "rate":
            raise VarshiftError("kind='rate' changes an argument of the call, not the call.")
        if self.kind == "follow-mode":
            return call() if training else input
        if self.kind == "rescale":
            result = call()
            return result / self.value if training and self.value is not None else result
        return self.act(input, training)

    def module(self, dimensions: int = 4) -> nn.Module:
        """The noise as a module: for ``"remove"`` and the kinds of noise.

        Args:
            dimensions: Number of dimensions of the signal, samples and channels included; it decides between
                the layers of torch that drop channels.

        Raises:
            VarshiftError: For the kinds that keep the module that is there.
        """
        if self.kind == "remove":
            return nn.Identity()
        if self.kind not in OTHER_NOISE or self.value is None:
            raise VarshiftError(f"kind={self.kind!r} keeps the noise that is there: it makes none.")
        if self.kind == "uniform":
            return layers.UniformDropout(self.value)
        if self.kind == "gaussian":
            return layers.GaussianDropout(self.value)
        if self.kind == "channel_dropout":
            dropouts = {3: nn.Dropout1d, 4: nn.Dropout2d, 5: nn.Dropout3d}
            return dropouts.get(dimensions, nn.Dropout)(self.value)
        return nn.Dropout(self.value)

    @property
    def text(self) -> str:
        """What is there afterwards, as its user would write it; empty where nothing is."""
        if self.kind == "remove":
            return ""
        value = None if self.value is None else float(f"{self.value:.6g}")
        return {
            "rate": f"p={value}",
            "dropout": f"Dropout(p={value})",
            "uniform": f"UniformDropout(beta={value})",
            "gaussian": f"GaussianDropout(sigma={value})",
            "channel_dropout": f"channel dropout(p={value})",
            "follow-mode": "in training only",
            "rescale": f"divided by {value}",
        }[self.kind]


def relative_variance(kind: str, rate: float) -> float | None:
    """Variance of the noise's factor around its mean 1, or None for noise that is no factor.

    A kept value is divided by the keep probability ``1 - p``, hence ``E[f^2] - 1 = 1 / (1 - p) - 1 =
    p / (1 - p)``; a uniform factor has ``beta^2 / 3``; a Gaussian one ``sigma^2``.

    Args:
        kind: Kind of a noise site, or of an action.
        rate: Its rate: drop probability, half-width or standard deviation.
    """
    if kind == "uniform":
        return rate * rate / 3
    if kind == "gaussian":
        return rate * rate
    if kind in ("alpha_dropout", "feature_alpha_dropout", "rrelu", "sampling", "permutation", "other"):
        return None
    return rate / (1 - rate) if rate < 1 else math.inf


def of_equal_variance(kind: NoiseKind, variance: float) -> tuple[NoiseAction, bool]:
    """Noise of a kind whose factor has a variance, or the most that the kind can do.

    Args:
        kind: One of `OTHER_NOISE`.
        variance: Variance of the factor.

    Returns:
        The action, and whether the variance is matched: uniform noise has at most 1/3.
    """
    if kind == "uniform":
        beta = math.sqrt(3 * variance)
        return NoiseAction("uniform", min(beta, 1.0)), beta <= 1 + 1e-9
    if kind == "gaussian":
        sigma = math.sqrt(variance)
        return NoiseAction("gaussian", sigma if math.isfinite(sigma) else 1e4), math.isfinite(sigma)
    return NoiseAction(kind, variance / (1 + variance) if math.isfinite(variance) else 1.0), True
