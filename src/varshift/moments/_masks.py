"""Two-point noise on its way through concatenations, sums and linear operations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ._signal import Mask, Signal, channel_mean, channel_power, even, per_channel, product_variance

if TYPE_CHECKING:
    from ._call import Call


def side_by_side(call: Call, result: Signal) -> Mask | None:
    """The two-point noise of all parts of a concatenation of channels; parts without it have factor 1."""
    parts = list(call.args[0]) if call.args and isinstance(call.args[0], (tuple, list)) else []
    dim = call.named().get("dim", 0)
    masks = [part.mask if isinstance(part, Signal) else None for part in parts]
    if result.mean.dim() < 2 or dim not in (1, 1 - result.mean.dim()) or not any(masks):
        return None
    if any(mask is not None and (mask.uneven or not mask.fresh) for mask in masks):
        return None

    def figures(name: str, otherwise: float) -> Tensor:
        columns = [
            value.to(result.mean).expand(size)
            if isinstance(value := getattr(mask, name, otherwise), Tensor)
            else result.mean.new_full((size,), value)
            for mask, size in zip(masks, sizes, strict=True)
        ]
        return torch.cat(columns)

    tensors = [part.mean if isinstance(part, Signal) else part for part in parts]
    sizes = [tensor.shape[1] for tensor in tensors]
    bases = [
        mask.base if mask else part if isinstance(part, Signal) else Signal(part)
        for mask, part in zip(masks, parts, strict=True)
    ]
    mean = torch.cat([base.mean for base in bases], 1)
    base = Signal(mean, floating=result.floating, doubts=result.doubts)
    if any(base.noisy for base in bases):
        base = base.but(
            variance=torch.cat([base.spread() for base in bases], 1),
            draw=torch.cat([base.deviation() for base in bases], 1),
            exact=all(base.exact or not base.noisy for base in bases),
        )
    ones = torch.ones((), dtype=mean.dtype, device=mean.device)
    factors = [
        (ones if mask is None or mask.factor is None else mask.factor).expand_as(tensor)
        for mask, tensor in zip(masks, tensors, strict=True)
    ]
    known = all(mask is None or mask.factor is not None for mask in masks)
    factor = torch.cat(factors, 1) if known else None
    return Mask(figures("low", 1.0), figures("high", 1.0), figures("probability", 0.0), base, factor=factor)


def of_sum(named: dict[str, Any], shape: torch.Size) -> Mask | None:
    """The two-point noise of one term; that of the other, if it has any, counts as Gaussian."""
    pairs = [(named.get("self"), named.get("other")), (named.get("other"), named.get("self"))]
    found: list[tuple[float, Mask, Any]] = [
        (float(term.spread().mean()) if isinstance(other, Signal) and other.mask else 0.0, term.mask, other)
        for term, other in pairs
        if isinstance(term, Signal) and term.mask is not None and term.mean.shape == shape
    ]
    if not found:
        return None
    _, mask, other = max(found, key=lambda item: item[0])
    if isinstance(other, Signal):
        return mask.added(other.mean, other.spread() if other.noisy else None)
    return mask.added(torch.as_tensor(other).to(mask.base.mean).expand(shape), None)


def commutes(x: Signal, mixes: bool) -> bool:
    """Whether noise that met the signal last has one factor for all that an operation brings together."""
    shape = None if x.mask is None else x.mask.shape
    if shape is None or len(shape) != x.mean.dim() or len(shape) < 2:
        return False
    return all(size == 1 for size in shape[2:]) and (shape[1] == 1 or not mixes)


def past_linear(call: Call, apply: Callable[[Tensor], Tensor]) -> Signal:
    """A linear operation behind noise with one factor for all that it brings together: ``W(rx) = r Wx``.

    So the noise keeps its two values, and its variance is exact: ``nu (Wx)^2``, not ``nu w^2 x^2``.

    Args:
        call: The call.
        apply: The operation without a constant term.
    """
    given = call.signals[0]
    result = call.linear(None)
    mask = given.mask
    if mask is None:
        return result
    old, scale = mask.base, mask.scale
    wide = torch.ones((), device=given.mean.device) if scale is None else per_channel(scale, given.mean)
    base = Signal(apply(wide * old.mean), floating=old.floating, doubts=old.doubts)
    if old.draw is not None:
        draw = apply(wide * old.draw)
        base = base.but(variance=even(draw), draw=draw)
    size, nu = (
        per_channel(figure, base.mean) if isinstance(figure, Tensor) else figure
        for figure in (mask.factor_mean, mask.factor_noise)
    )
    middle = size * base.mean
    shift = result.mean - middle
    if mask.shift is None and call.named().get("bias") is None:
        shift = None
    variance = product_variance(middle, base.spread(), size, nu)
    other_noise = None
    if mask.other_noise is not None and result.draw is not None:  # the rest of the draw
        rest = channel_power(result.draw) - channel_mean(variance)
        other_noise = per_channel(rest.clamp_min(0), variance).expand_as(variance)
        variance = variance + other_noise
    exact = not base.noisy and other_noise is None
    after = replace(mask, base=base, scale=None, shift=shift, other_noise=other_noise)
    return result.but(variance=variance, exact=exact, mask=after)
