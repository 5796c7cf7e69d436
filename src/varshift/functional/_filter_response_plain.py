"""Filter response normalisation and its threshold as the equations stand, in differentiable operators."""

from __future__ import annotations

import torch
from torch import Tensor


def per_channel(values: Tensor, x: Tensor) -> Tensor:
    """A view of one value per channel, or of a single one, that broadcasts over ``(B, C, *)``."""
    return values.reshape(1, -1, *[1] * (x.dim() - 2))


def plain_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, tau: Tensor | None, constant: Tensor | float
) -> Tensor:
    """The norm; `constant` is all that is added under the root."""
    wide = x if x.dtype == torch.float64 else x.float()
    axes = tuple(range(2, x.dim()))
    power = wide.square().mean(axes, keepdim=True) if axes else wide.square()
    if isinstance(constant, Tensor):
        constant = per_channel(constant, x).to(wide.dtype)
    scale = (power + constant).rsqrt()
    if weight is not None:
        scale = scale * per_channel(weight, x).to(wide.dtype)
    out = wide * scale
    if bias is not None:
        out = out + per_channel(bias, x).to(wide.dtype)
    return (out if tau is None else plain_threshold(out, tau)).to(x.dtype)


def plain_threshold(x: Tensor, tau: Tensor) -> Tensor:
    """The threshold. Of all ways to write it, clamp gives the gradient at a tie to `x`, as the paper does."""
    return torch.clamp(x, min=per_channel(tau, x).to(x.dtype))
