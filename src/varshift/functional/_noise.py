"""The noise kernel behind all noise layers: cheap random bits, and a product that saves little.

On a CPU torch's own noise is the slow part of a noisy layer: there the bits are drawn 64 at a time and cut
into pieces. What waits for the backward pass is the noise itself in its smallest form: a byte per value for a
mask, two for a number. On a GPU, where moving memory is what costs, numbers are drawn in that form at once.
Compilers, exporters, function transforms and other devices get torch's plain operators instead, which they
fuse, show and run better.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from varshift.functional._observed import observed

_PIECES = {16: torch.int16, 32: torch.int32, 64: torch.int64}
_ODD = 0x0001_0001_0001_0001  # the lowest bit of each of four 16-bit pieces


def takes_kernel(x: Tensor) -> bool:
    """Whether noise on a tensor is drawn by the kernel; otherwise by torch's plain operators."""
    return (
        x.device.type in ("cpu", "cuda") and x.layout == torch.strided and not observed(x, forward_mode=False)
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


def random_symmetric(x: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, float]:
    """Integers of 16 bits, evenly spaced around exactly 0, and the factor that makes them ``U(-1, 1)``.

    Their variance is 1/3 to within ``2**-30``. Where a CPU cuts them from integers of 64 bits, a GPU, which
    has random numbers in plenty, draws each by itself.
    """
    return (odd_integers if x.device.type == "cpu" else all_integers)(x, generator)


def odd_integers(x: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, float]:
    """The odd integers of 16 bits, four from each of 64 bits; see `random_symmetric`."""
    drawn = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device)
    drawn.random_(-(2**63), None, generator=generator).bitwise_or_(_ODD)
    return _laid_out(drawn.view(torch.int16), x), 2**-15


def all_integers(x: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, float]:
    """The integers of 16 bits but for the lowest, one by one; see `random_symmetric`."""
    drawn = torch.empty_like(x, dtype=torch.int16)
    return drawn.random_(1 - 2**15, 2**15, generator=generator), 2 / 65535


def random_normal(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Standard normal values of two bytes; on a CPU drawn in single precision and rounded to float16."""
    if x.device.type == "cpu":
        drawn = torch.empty(x.numel(), dtype=torch.float32)
        return _laid_out(drawn.normal_(generator=generator).half(), x)
    half = x.dtype if x.dtype == torch.bfloat16 else torch.float16
    return torch.empty_like(x, dtype=half).normal_(generator=generator)


def scaled(x: Tensor, noise: Tensor, scale: float, offset: bool) -> Tensor:
    """``x * (offset + scale * noise)``, keeping nothing but the noise for the backward pass."""
    return _Scaled.apply(x, noise, scale, offset)  # type: ignore[no-any-return]


def _laid_out(flat: Tensor, x: Tensor) -> Tensor:
    return flat[: x.numel()].as_strided(x.shape, torch.empty_like(x, device="meta").stride())


def _product(x: Tensor, noise: Tensor, scale: float, offset: bool) -> Tensor:
    wide, out = noise, None
    # A batch of gradients has no room for a result that is given.
    if x.device.type == "cpu" and not observed(x, forward_mode=False):
        # Fresh memory costs as much as the arithmetic: the noise, widened, makes room for the result.
        wide = out = noise.to(torch.promote_types(x.dtype, noise.dtype), copy=True)
    base = x if offset else x.new_zeros(())
    return torch.addcmul(base, x, wide, value=scale, out=out).to(x.dtype)


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
