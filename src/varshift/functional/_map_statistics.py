"""Moments of the maps of a batch, and a scale and shift for each: what a norm consists of, with few passes.

Both are differentiable, twice if need be. What waits for the backward pass is the input, once for both, and
numbers per map.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._maps import Maps
from ._observed import observed

# E[x^2] - E[x]^2 loses the digits by which the squared mean exceeds the variance.
_CANCELLATION = 4.0
_SMALL_MAP = 8  # positions; below, numbers per map are too many to be cheap


def maps_are_worth_it(x: Tensor) -> bool:
    """Whether to normalise ``x`` of shape (N, C, *) by the functions of this file, or in plain operators."""
    return x.dim() > 2 and not observed(x) and x[0, 0].numel() >= _SMALL_MAP


def map_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each map of ``x`` of shape (N, C, *), of shape (N, C), float32 at least."""
    return _Moments.apply(x)  # pyright: ignore[reportReturnType]


def map_affine(x: Tensor, centre: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """``scale (x - centre) + shift`` with one of each per map, of shape (N, C); `centre` is a constant."""
    return _Affine.apply(x, centre.detach(), scale, shift)  # pyright: ignore[reportReturnType]


class _Moments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        maps = Maps(x)
        mean, var = maps.scalars(), maps.scalars()
        for block in maps.blocks():
            part = maps.wide(maps.x[block])
            if maps.rows_have_kernel:
                torch.mean(part, 1, out=mean[block])
                power = torch.linalg.vector_norm(part, dim=1).square_().div_(maps.positions)
                squared = mean[block].square()
                torch.sub(power, squared, out=var[block])
                if bool((squared > _CANCELLATION * var[block]).any()):
                    centred = torch.empty_like(part)
                    maps.affine(part, torch.ones_like(squared), -mean[block], centred)
                    torch.linalg.vector_norm(centred, dim=1, out=var[block]).square_().div_(maps.positions)
            elif x.device.type == "cpu":
                torch.mean(part, 1, out=mean[block])
                torch.sum((part - mean[block].unsqueeze(1)).square_(), 1, out=var[block])
                var[block].div_(maps.positions)
            else:
                var[block], mean[block] = torch.var_mean(part, 1, correction=0)
        mean, var = mean.view(x.shape[:2]), var.view(x.shape[:2])
        ctx.save_for_backward(x, mean)
        return mean, var

    @staticmethod
    def backward(ctx: Any, dmean: Tensor, dvar: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """``dx = (dmean + 2 (x - mean) dvar) / positions``."""
        x, mean = ctx.saved_tensors
        positions = x[0, 0].numel()
        scale = dvar * (2 / positions)
        if torch.is_grad_enabled():  # it will be differentiated once more
            wide = x.to(mean.dtype)
            centred = wide - wide.mean(tuple(range(2, x.dim())), keepdim=True)
            return (_beside(dmean / positions, x) + centred * _beside(scale, x)).to(x.dtype)
        return _affine(Maps(x), mean, scale, dmean / positions)


class _Affine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, centre: Tensor, scale: Tensor, shift: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(x, centre, scale)
        return _affine(Maps(x), centre, scale, shift)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """``dx = g scale``, ``dscale = sum g (x - centre)``, ``dshift = sum g``, sums over each map."""
        x, centre, scale = ctx.saved_tensors
        if torch.is_grad_enabled():
            axes, wide = tuple(range(2, x.dim())), gradient.to(scale.dtype)
            dx = (wide * _beside(scale, x)).to(x.dtype)
            return dx, None, (wide * (x - _beside(centre, x))).sum(axes), wide.sum(axes)
        maps = Maps(x)
        upstream, factors = maps.of(gradient), (maps.spread(centre), maps.spread(scale))
        dx, written = maps.new()
        dscale, dshift = maps.scalars(), maps.scalars()
        for block in maps.blocks():
            part, g, room = maps.wide(maps.x[block]), maps.wide(upstream[block]), maps.room(written[block])
            middle, slope = (factor[block] for factor in factors)
            if maps.rows_have_kernel:
                # The backward pass of a norm with given mean, variance 1 and eps 0 is just what is wanted.
                into, aligned, passed = torch.ops.aten.native_batch_norm_backward(
                    g.unsqueeze(0),
                    part.unsqueeze(0),
                    slope,
                    middle,
                    torch.ones_like(middle),
                    None,
                    None,
                    False,
                    0.0,
                    [True, True, True],
                )
                dscale[block], dshift[block] = aligned, passed
                written[block] = into[0]
                continue
            torch.sum(g, 1, out=dshift[block])
            torch.sub(part, middle.unsqueeze(1), out=room)
            torch.sum(room.mul_(g), 1, out=dscale[block])
            torch.mul(g, slope.unsqueeze(1), out=room)
            if room.dtype != written.dtype:
                written[block] = room
        return dx, None, dscale.view(x.shape[:2]), dshift.view(x.shape[:2])


def _affine(maps: Maps, centre: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    out, written = maps.new()
    # Folded in double precision: beside a large centre the product would lose what the shift has to say.
    offset = shift.double() - centre.double() * scale.double()
    slope, offset = maps.spread(scale), maps.spread(offset.to(scale.dtype))
    middle, add = maps.spread(centre), maps.spread(shift)
    for block in maps.blocks():
        part, room = maps.wide(maps.x[block]), maps.room(written[block])
        if maps.rows_have_kernel:
            maps.affine(part, slope[block], offset[block], room)
        else:
            torch.sub(part, middle[block].unsqueeze(1), out=room)
            torch.addcmul(add[block].unsqueeze(1), room, slope[block].unsqueeze(1), out=room)
        if room.dtype != written.dtype:
            written[block] = room
    return out


def _beside(values: Tensor, x: Tensor) -> Tensor:
    return values.reshape(*values.shape, *[1] * (x.dim() - 2))
