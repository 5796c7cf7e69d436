"""When a hand-written kernel has to give way to plain operators that others can read."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

# Not public, but what torch's own autograd.Function asks; without them there is nothing to give way to.
_transforms = getattr(torch._C, "_are_functorch_transforms_active", lambda: False)
_dispatch_modes = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 0)
_batched = getattr(getattr(torch._C, "_functorch", None), "is_legacy_batchedtensor", lambda x: False)


def observed(x: Tensor, *, forward_mode: bool = True) -> bool:
    """Whether something follows the operators one by one, so that a part should be written in plain ones.

    True while compiling, exporting or tracing, under the transforms of `torch.func`, in forward mode, under a
    dispatch mode (fake tensors, operator counters, captures), and for tensors that are not ordinary ones in
    memory, such as batches of gradients.

    Args:
        x: The part's input.
        forward_mode: Whether forward mode counts; not for a part that has a derivative of its own for it.
    """
    return (
        torch.compiler.is_compiling()
        or type(x) not in (Tensor, nn.Parameter)
        or x.is_meta
        or _batched(x)
        or torch.jit.is_tracing()  # type: ignore[attr-defined]
        or _transforms()
        or _dispatch_modes() > 0
        or (forward_mode and getattr(forward_ad, "_current_level", -1) >= 0)
    )
