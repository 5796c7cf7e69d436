"""What becomes of a call that makes noise, as data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from varshift import nn as layers
from varshift._arguments import between, non_negative
from varshift._errors import VarshiftError
from varshift.functional import gaussian_dropout, uniform_dropout

NoiseKind = Literal[
    "remove",
    "rate",
    "dropout",
    "uniform",
    "gaussian",
    "channel_dropout",
    "drop_path",
    "follow-mode",
    "rescale",
]
OTHER_NOISE: tuple[NoiseKind, ...] = ("dropout", "uniform", "gaussian", "channel_dropout")
NEW_NOISE: tuple[NoiseKind, ...] = (*OTHER_NOISE, "drop_path")  # what can be put where no noise was

_RANGES = {  # the least and the greatest value; None where the kind takes no value
    "remove": None,
    "rate": (0.0, math.inf),
    "dropout": (0.0, 1.0),
    "uniform": (0.0, 1.0),
    "gaussian": (0.0, math.inf),
    "channel_dropout": (0.0, 1.0),
    "drop_path": (0.0, 1.0),
    "follow-mode": None,
    "rescale": (0.0, math.inf),
}


@dataclass(frozen=True, slots=True)
class NoiseAction:
    """What becomes of a call that makes noise.

    Attributes:
        kind: ``"remove"`` (the input passes as it is), ``"rate"`` (the same noise at another rate),
            ``"dropout"``, ``"uniform"``, ``"gaussian"``, ``"channel_dropout"`` (noise of this kind instead),
            ``"drop_path"`` (at a new place only: whole samples are dropped, the others divided by the
            probability that they are kept),
            ``"follow-mode"`` (the same noise, in training only) or ``"rescale"`` (the same noise, divided in
            training by the mean of its factor).
        value: Drop probability, half-width of the uniform noise, standard deviation of the Gaussian noise, or
            the factor to divide by; None where the kind needs none.
        note: What its user should know of the value.

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
    note: str = ""

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
            VarshiftError: For the kinds that keep the call.
        """
        if self.kind == "remove":
            return input
        if self.kind not in NEW_NOISE:
            raise VarshiftError(f"kind={self.kind!r} keeps the noise that is there: it makes none.")
        if not training or not self.value:
            return input
        if self.kind == "drop_path":
            keep = 1 - self.value
            gate = input.new_full((input.shape[0], *[1] * (input.dim() - 1)), keep).bernoulli()
            return input * (gate / keep if keep else gate)
        if self.kind == "uniform":
            return uniform_dropout(input, self.value, True)
        if self.kind == "gaussian":
            return gaussian_dropout(input, self.value, True)
        if self.kind == "channel_dropout" and input.dim() > 2:
            return torch.feature_dropout(input, self.value, True)
        return nn.functional.dropout(input, self.value, True)

    def attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """``torch.nn.functional.scaled_dot_product_attention`` with this noise on its weights.

        The fused function knows no noise but dropout: where its dropout acts, the weights are computed.
        Everywhere else it is called as it was.

        Args:
            query: As for the function, like all others.
            key: The keys.
            value: The values.
            attn_mask: What may be attended to, or what is added to the scores.
            dropout_p: Its drop probability; only whether it is above 0 matters.
            is_causal: Whether only earlier positions may be attended to.
            scale: What the scores are multiplied with.
            enable_gqa: Whether several heads of queries share one of keys and values.
        """
        attend = nn.functional.scaled_dot_product_attention
        if not dropout_p:
            return attend(query, key, value, attn_mask, 0.0, is_causal, scale=scale, enable_gqa=enable_gqa)
        if enable_gqa:
            key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
            value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
        scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
        if is_causal:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        if attn_mask is not None:
            if attn_mask.dtype == torch.bool:
                scores = scores.masked_fill(~attn_mask, -math.inf)
            else:
                scores = scores + attn_mask
        return self.act(scores.softmax(-1), True).to(value.dtype) @ value

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
        note = f" ({self.note})" if self.note else ""
        text = {
            "rate": f"p={value}",
            "dropout": f"Dropout(p={value})",
            "uniform": f"UniformDropout(beta={value})",
            "gaussian": f"GaussianDropout(sigma={value})",
            "channel_dropout": f"channel dropout(p={value})",
            "drop_path": f"DropPath(p={value})",
            "follow-mode": "in training only",
            "rescale": f"divided by {value}",
        }[self.kind]
        return text + note


def of_equal_variance(kind: NoiseKind, variance: float) -> NoiseAction:
    """Noise of a kind whose factor has a given variance, or the most that the kind can do.

    A uniform factor has ``beta^2 / 3``, a Gaussian one ``sigma^2``, dropout ``p / (1 - p)``.

    Args:
        kind: One of `OTHER_NOISE`.
        variance: Variance of the factor.
    """
    if kind == "uniform":
        beta = math.sqrt(3 * variance)
        note = f"its variance is 1/3 at most, and was {variance:.3g}" if beta > 1 + 1e-9 else ""
        return NoiseAction("uniform", min(beta, 1.0), note)
    if kind == "gaussian":
        return NoiseAction("gaussian", math.sqrt(variance))
    return NoiseAction(kind, variance / (1 + variance))
