"""The functions that a norm may call, and how to run them with other statistics than its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from varshift.model import Norm


@dataclass(slots=True)
class NormCall:
    """Arguments of a norm's call, whichever function was called."""

    input: Tensor
    running_mean: Tensor | None
    running_var: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    training: bool
    eps: float


def _read_functional(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> NormCall:
    return NormCall(input, running_mean, running_var, weight, bias, training, eps)


def _read_functional_instance(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> NormCall:
    return NormCall(input, running_mean, running_var, weight, bias, use_input_stats, eps)


def _read_kernel(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> NormCall:
    return NormCall(input, running_mean, running_var, weight, bias, training, eps)


READERS: dict[Any, Callable[..., NormCall]] = {
    F.batch_norm: _read_functional,
    F.instance_norm: _read_functional_instance,
    torch.batch_norm: _read_kernel,
    torch.instance_norm: _read_kernel,
}


def run_batch_norm(call: NormCall, mean: Tensor | None, var: Tensor | None, *, training: bool) -> Tensor:
    cudnn = torch.backends.cudnn.enabled
    return torch.batch_norm(call.input, call.weight, call.bias, mean, var, training, 1.0, call.eps, cudnn)


def run_instance_norm(call: NormCall, mean: Tensor | None, var: Tensor | None, *, training: bool) -> Tensor:
    cudnn = torch.backends.cudnn.enabled
    return torch.instance_norm(call.input, call.weight, call.bias, mean, var, training, 1.0, call.eps, cudnn)


def like(value: Tensor | None, model: Tensor | None) -> Tensor | None:
    """The value in the type of another tensor."""
    return value if value is None or model is None or value.dtype == model.dtype else value.to(model.dtype)


def kernel_takes(call: NormCall, dtype: torch.dtype) -> bool:
    """Whether the kernel accepts statistics of this type beside its other arguments."""
    parameter = call.weight if call.weight is not None else call.bias
    if parameter is not None and parameter.dtype != dtype:
        return False
    if call.input.dtype == dtype:
        return True
    return dtype == torch.float32 and call.input.dtype in (torch.float16, torch.bfloat16)


def batch_moments(x: Tensor, mean_out: Tensor, var_out: Tensor) -> None:
    """Writes per-channel mean and unbiased variance of ``x`` of shape ``(N, C, ...)``."""
    if rows_are_faster(x) and x.dtype == mean_out.dtype:
        _moments_by_rows(x, mean_out, var_out)
        return
    same = x.dtype == mean_out.dtype or (
        mean_out.dtype == torch.float32 and x.dtype in (torch.float16, torch.bfloat16)
    )
    if same and x.device.type in ("cpu", "cuda"):
        # The first half of the norm's own kernel: a blend with momentum 1 leaves just the batch statistics.
        torch.batch_norm_update_stats(x, mean_out, var_out, 1.0)
        sharpen(x, mean_out, var_out)
        return
    dims = [dim for dim in range(x.dim()) if dim != 1]
    wide = torch.float32 if x.device.type == "mps" else torch.float64
    var, mean = torch.var_mean(x.to(wide), dims, correction=min(1, x.numel() // x.shape[1] - 1))
    mean_out.copy_(mean)
    var_out.copy_(var)


def rows_are_faster(x: Tensor) -> bool:
    """Whether the moments are cheaper through those of each sample's maps than through the batch norm kernel.

    On contiguous maps in main memory torch's batch norm kernel walks scalar by scalar with a stride;
    reductions over each map use vector instructions and are several times as fast.
    """
    rows = x.shape[0] * x.shape[1]
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and x.dim() >= 3
        and x.is_contiguous()
        and x.numel() >= 16 * rows > 0
    )


# Var = E[x^2] - E[x]^2 loses as many digits as the squared mean exceeds the variance; up to this factor a
# single-precision sum keeps the error near 1e-6.
_CANCELLATION = 16.0

# The kernel subtracts the mean first, but some of its forms round that mean to single precision: an error of
# 1e-7 means, which is 1e-5 standard deviations at this factor.
_CANCELLATION_KERNEL = 1e4


def _moments_by_rows(x: Tensor, mean_out: Tensor, var_out: Tensor) -> None:
    """Moments through sums over each map, pooled over samples in double precision."""
    samples, channels = x.shape[:2]
    rows = x.view(samples * channels, -1)
    count = samples * rows.shape[1]
    total = rows.sum(1).view(samples, channels).sum(0, dtype=torch.float64)
    squares = torch.linalg.vector_norm(rows, dim=1).view(samples, channels).double().square_().sum(0)
    mean = total / count
    var = (squares - total * mean) / (count - 1)
    mean_out.copy_(mean)
    var_out.copy_(var)
    _sharpen(x, mean_out, var_out, ~(mean.square() <= _CANCELLATION * var))


def sharpen(x: Tensor, mean_out: Tensor, var_out: Tensor) -> None:
    """Computes moments that the kernel wrote again where the mean is large beside the deviation.

    In main memory only: the kernels of accelerators follow Welford's rule, and asking would wait for them.
    """
    if x.device.type == "cpu":
        _sharpen(x, mean_out, var_out, mean_out.square() > _CANCELLATION_KERNEL * var_out)


def _sharpen(x: Tensor, mean_out: Tensor, var_out: Tensor, wanted: Tensor) -> None:
    if not bool(wanted.any()):
        return
    channels = wanted.nonzero().flatten()
    dims = [dim for dim in range(x.dim()) if dim != 1]
    centre = mean_out[channels]
    # Close to the mean the difference is exact, and what is left of the mean is small.
    rest = x.index_select(1, channels).to(centre.dtype) - centre.view(-1, *[1] * (x.dim() - 2))
    count = rest.numel() // len(channels)
    offset = rest.sum(dims).double() / count
    squares = torch.linalg.vector_norm(rest, dim=dims).double().square()
    mean_out[channels] = (centre.double() + offset).to(mean_out.dtype)
    var_out[channels] = ((squares - count * offset.square()) / max(1, count - 1)).to(var_out.dtype)


def instance_moments(x: Tensor, mean_out: Tensor, var_out: Tensor) -> None:
    """Writes what an instance norm averages: means over instances of their mean and unbiased variance."""
    values = x.detach().to(mean_out.dtype).flatten(2)
    var, mean = torch.var_mean(values, 2, correction=min(1, values.shape[2] - 1))
    mean_out.copy_(mean.mean(0))
    var_out.copy_(var.mean(0))


def arranged(x: Tensor, norm: Norm) -> Tensor | None:
    """A view of shape ``(N, C, ...)`` of the input of a norm written by hand, None if channels do not fit."""
    layout, channels = norm.states.layout, norm.channels
    if layout == "all":
        return x.reshape(-1, 1)
    if layout == "samples":
        return x.reshape(len(x), channels) if x.dim() and len(x) and x[0].numel() == channels else None
    if layout == "last" and x.dim() >= 2 and x.shape[-1] == channels:
        return x.movedim(-1, 1)
    if x.dim() >= 2 and x.shape[1] == channels:
        return x
    if x.dim() >= 2 and x.shape[-1] == channels:
        return x.movedim(-1, 1)
    return x.unsqueeze(0) if x.dim() == 1 and x.shape[0] == channels else None
