"""The noise kernel behind all noise layers: cheap random bits, and a product that saves little.

On a CPU torch's own noise is the slow part of a noisy layer. There the bits are drawn 64 at a time and cut
into pieces, and what waits for the backward pass is the noise itself in its smallest form: a byte per value
for a mask, two for a number. Compilers, exporters, function transforms and other devices get torch's plain
operators instead, which they fuse, show and run better.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_legacy_batchedtensor, peek_interpreter_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode

_PIECES = {16: torch.int16, 32: torch.int32, 64: torch.int64}
_ODD = 0x0001_0001_0001_0001  # the lowest bit of each of four 16-bit pieces


def takes_kernel(x: Tensor) -> bool:
    """Whether noise on a tensor is drawn by the kernel; otherwise by torch's plain operators."""
    return (
        not torch.compiler.is_compiling()  # true while exporting, too
        and not torch._C._is_tracing()
        and x.device.type == "cpu"
        and x.layout == torch.strided
        and type(x) in (Tensor, nn.Parameter)
        and _get_current_dispatch_mode() is None
        and peek_interpreter_stack() is None
    )


def random_bits(x: Tensor, width: int, generator: torch.Generator | None = None) -> Tensor:
    """Uniform integers of 16, 32 or 64 bits in the shape of a tensor, and in its layout where that is dense.

    They are drawn as integers of 64 bits over their whole range; `random_()` without bounds would leave the
    sign of each at zero.
    """
    pieces = 64 // width
    drawn = torch.empty(-(-x.numel() // pieces), dtype=torch.int64, device=x.device)
    drawn.random_(-(2**63), None, generator=generator)
    return _laid_out(drawn.view(_PIECES[width]), x)


def random_mask(x: Tensor, p: float, generator: torch.Generator | None = None) -> tuple[Tensor, float]:
    """A mask of zeros and ones, one byte per value, and the exact probability of a one, which is the scale.

    The probability of a zero is `p` rounded to a multiple of ``2**-16``. Where that would be coarse (`p`
    within 1/256 of 0 or of 1) it is rounded to a multiple of ``2**-32`` or ``2**-64``, and never to 0 or 1.

    Args:
        x: Gives shape and layout.
        p: Probability of a zero, strictly between 0 and 1.
        generator: Source of the random numbers; the global one by default.
    """
    rare = min(p, 1 - p)
    width = 16 if rare >= 2**-8 else 32 if rare >= 2**-24 else 64
    levels = 2**width
    few = max(round(rare * levels), 1)
    dropped = few if p <= 0.5 else levels - few
    mask = torch.empty_like(x, dtype=torch.uint8)
    torch.ge(random_bits(mask, width, generator), dropped - levels // 2, out=mask)
    return mask, (levels - dropped) / levels


def random_symmetric(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """The odd integers of 16 bits, uniformly: ``2**15`` levels around a mean of exactly 0.

    Divided by ``2**15`` they have the variance 1/3 of ``U(-1, 1)`` to within ``2**-30``.
    """
    drawn = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device)
    drawn.random_(-(2**63), None, generator=generator).bitwise_or_(_ODD)
    return _laid_out(drawn.view(torch.int16), x)


def random_normal(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Standard normal values, drawn in single precision and rounded to float16, which is what is kept."""
    drawn = torch.empty(x.numel(), dtype=torch.float32, device=x.device)
    return _laid_out(drawn.normal_(generator=generator).half(), x)


def scaled(x: Tensor, noise: Tensor, scale: float, offset: bool) -> Tensor:
    """``x * (offset + scale * noise)``, keeping nothing but the noise for the backward pass."""
    return _Scaled.apply(x, noise, scale, offset)  # type: ignore[no-any-return]


def _laid_out(flat: Tensor, x: Tensor) -> Tensor:
    return flat[: x.numel()].as_strided(x.shape, torch.empty_like(x, device="meta").stride())


def _product(x: Tensor, noise: Tensor, scale: float, offset: bool) -> Tensor:
    # Fresh memory costs as much as the arithmetic: the noise, widened, makes room for the result.
    wide = noise.to(torch.promote_types(x.dtype, noise.dtype))
    base = x if offset else wide.new_zeros(())
    batched = is_legacy_batchedtensor(x) or peek_interpreter_stack() is not None  # they have no such room
    return torch.addcmul(base, x, wide, value=scale, out=None if batched else wide).to(x.dtype)


class _Scaled(torch.autograd.Function):
    """A product with noise; linear, so that its backward pass and its derivative are the same product."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, noise: Tensor, scale: float, offset: bool) -> Tensor:
        ctx.scale, ctx.offset = scale, offset
        ctx.save_for_backward(noise)
        ctx.save_for_forward(noise)
        return _product(x, noise, scale, offset)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (noise,) = ctx.saved_tensors
        # Torch would differentiate the product itself in the precision of the noise.
        product = scaled if torch.is_grad_enabled() else _product
        return product(gradients[0], noise, ctx.scale, ctx.offset), None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        (noise,) = ctx.saved_tensors
        return _product(tangents[0], noise, ctx.scale, ctx.offset)
