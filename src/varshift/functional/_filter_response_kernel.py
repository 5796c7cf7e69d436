"""Filter response normalisation and its threshold for eager mode: few passes over memory, little kept.

What waits for the backward pass is the input and one number per map; the rest is computed again there, block
by block in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from varshift.functional._filter_response_plain import plain_norm, plain_threshold
from varshift.functional._maps import Maps, pass_where_not_negative

_Gradients = tuple[Tensor | None, ...]


class FilterResponse(torch.autograd.Function):
    """Normalises, scales, shifts and, where a threshold is given, cuts off.

    Its arguments are input, weight, bias, threshold, and the constant under the root: a tensor with one per
    channel where it is learned, else None and a number.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        tau: Tensor | None,
        learned: Tensor | None,
        fixed: float,
    ) -> Tensor:
        """Writes the output."""
        maps = Maps(x)
        out, written = maps.new()
        inverse = maps.scalars()
        constant = torch.full_like(inverse, fixed) if learned is None else maps.spread(learned)
        gain = None if weight is None else maps.spread(weight)
        shift = torch.zeros_like(inverse) if bias is None else maps.spread(bias)
        floor = None if tau is None else maps.spread(tau).unsqueeze(1)
        for block in maps.blocks():
            part, room = maps.wide(maps.x[block]), maps.room(written[block])
            power = maps.power(part, room)
            inverse[block] = power.add_(constant[block]).rsqrt_()
            maps.affine(part, power if gain is None else power * gain[block], shift[block], room)
            if floor is not None:
                torch.clamp(room, min=floor[block], out=room)
            if room.dtype != written.dtype:
                written[block] = room
        ctx.save_for_backward(x, weight, bias, tau, learned, inverse)
        ctx.fixed = fixed
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> _Gradients:  # type: ignore[override]
        """Gradients of all tensors."""
        x, weight, bias, tau, learned, inverse = ctx.saved_tensors
        needs = ctx.needs_input_grad
        if torch.is_grad_enabled():  # they will be differentiated once more
            fixed = ctx.fixed

            def plain(x: Tensor, weight: Tensor, bias: Tensor, tau: Tensor, learned: Tensor) -> Tensor:
                return plain_norm(x, weight, bias, tau, fixed if learned is None else learned)

            return (*_by_autograd(plain, (x, weight, bias, tau, learned), gradient, needs), None)
        return (*_backward(x, weight, bias, tau, learned, inverse, gradient, needs), None)


def _backward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    tau: Tensor | None,
    learned: Tensor | None,
    inverse: Tensor,
    gradient: Tensor,
    needs: Sequence[bool],
) -> _Gradients:
    """The derivatives with g the gradient past the threshold, s the root and xhat = x / s.

    ``dgamma = sum g xhat``, ``dbeta = sum g``, ``dtau`` is the sum of what the threshold stopped,
    ``dx = gamma (g - xhat mean(g xhat)) / s`` with the mean over a map, and
    ``deps = -gamma sum(g xhat) / (2 s^2)``.
    """
    maps = Maps(x)
    upstream = maps.of(gradient)
    dx, written = maps.new() if needs[0] else (None, None)
    gain = torch.ones_like(inverse) if weight is None else maps.spread(weight)
    scale = inverse * gain
    margin_shift = None
    if tau is not None:
        margin_shift = maps.spread(-tau if bias is None else bias.to(maps.dtype) - tau.to(maps.dtype))
    total, passed, aligned = maps.scalars(), maps.scalars(), maps.scalars()
    for block in maps.blocks():
        part, g = maps.wide(maps.x[block]), maps.wide(upstream[block])
        if margin_shift is not None:
            maps.total(g, total[block])
            margin = torch.empty_like(part)
            maps.affine(part, scale[block], margin_shift[block], margin)
            g = pass_where_not_negative(g, margin)
        room = None if written is None else maps.room(written[block])
        if maps.rows_have_kernel:
            _rows(part, g, gain[block], inverse[block], passed[block], aligned[block], room)
        else:
            _any_layout(maps, part, g, scale[block], inverse[block], passed[block], aligned[block], room)
        if room is not None and written is not None and room.dtype != written.dtype:
            written[block] = room
    dweight = maps.fold(aligned, weight) if weight is not None and needs[1] else None
    dbias = maps.fold(passed, bias) if bias is not None and needs[2] else None
    dtau = maps.fold(total - passed, tau) if tau is not None and needs[3] else None
    dlearned = None
    if learned is not None and needs[4]:
        dlearned = maps.fold(gain * aligned * inverse.square() * -0.5, learned)
    return dx, dweight, dbias, dtau, dlearned


def _rows(
    x: Tensor, g: Tensor, gain: Tensor, inverse: Tensor, passed: Tensor, aligned: Tensor, room: Tensor | None
) -> None:
    """One block of rows, by the kernel of batch norm with mean 0, whose backward sums as wanted.

    It also takes the mean of the gradient away, as batch norm has to, which is given back.
    """
    zero = torch.zeros_like(inverse)
    dx, dweight, dbias = torch.ops.aten.native_batch_norm_backward(
        g.unsqueeze(0),
        x.unsqueeze(0),
        gain,
        None,
        None,
        zero,
        inverse,
        True,
        0.0,
        [room is not None, True, True],
    )
    passed.copy_(dbias)
    aligned.copy_(dweight)
    if room is not None:
        taken = gain * inverse * dbias / x.shape[1]
        torch.add(dx.squeeze(0), taken.unsqueeze(1), out=room)


def _any_layout(
    maps: Maps,
    x: Tensor,
    g: Tensor,
    scale: Tensor,
    inverse: Tensor,
    passed: Tensor,
    aligned: Tensor,
    room: Tensor | None,
) -> None:
    """One block of any layout, in plain operators."""
    maps.total(g, passed)
    product = torch.mul(g, x, out=room) if room is not None else g * x
    maps.total(product, aligned)
    aligned.mul_(inverse)
    if room is not None:
        torch.mul(g, scale.unsqueeze(1), out=room)
        room.addcmul_(x, (scale * inverse * aligned / maps.positions).unsqueeze(1), value=-1)


class Threshold(torch.autograd.Function):
    """Cuts a signal off below a threshold per channel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, tau: Tensor) -> Tensor:
        """Writes the output."""
        ctx.save_for_backward(x, tau)
        return plain_threshold(x, tau)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> _Gradients:  # type: ignore[override]
        """Gradients of both."""
        x, tau = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _by_autograd(plain_threshold, (x, tau), gradient, ctx.needs_input_grad)
        maps = Maps(x)
        upstream = maps.of(gradient)
        dx, written = maps.new()
        floor = maps.spread(tau.to(x.dtype)).unsqueeze(1)
        total, passed = maps.scalars(), maps.scalars()
        for block in maps.blocks():
            part, room = maps.wide(maps.x[block]), maps.room(written[block])
            g = maps.wide(upstream[block])
            torch.sub(part, floor[block], out=room)
            pass_where_not_negative(g, room)
            maps.total(g, total[block])
            maps.total(room, passed[block])
            if room.dtype != written.dtype:
                written[block] = room
        return dx, maps.fold(total - passed, tau) if ctx.needs_input_grad[1] else None


def _by_autograd(
    plain: Callable[..., Tensor], given: Sequence[Tensor | None], gradient: Tensor, needs: Sequence[bool]
) -> _Gradients:
    """Gradients that can be differentiated again: those of the plain equations."""
    wanted = [value for value, need in zip(given, needs, strict=False) if need and value is not None]
    with torch.enable_grad():
        found = iter(torch.autograd.grad(plain(*given), wanted, gradient, create_graph=True))
    return tuple(
        next(found) if need and value is not None else None for value, need in zip(given, needs, strict=False)
    )
