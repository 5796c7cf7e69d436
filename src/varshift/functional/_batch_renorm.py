"""Batch renormalisation (Ioffe 2017), as a function."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from varshift.functional._observed import observed

# E[x^2] - E[x]^2 in single precision loses the digits by which the squared mean exceeds the variance.
_CANCELLATION = 16.0
# From so many values per map on, sums over maps are faster than the statistics of torch's batch norm.
_LONG_ROWS = 16


def batch_renorm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | Tensor = 0.01,
    eps: float = 1e-5,
    r_max: float | Tensor = 3.0,
    d_max: float | Tensor = 5.0,
) -> Tensor:
    r"""Batch norm whose training output is corrected towards that of evaluation, within limits.

    .. math::

        r = \mathrm{clip}\Big(\frac{\sigma_B}{\sigma}, \frac{1}{r_{max}}, r_{max}\Big), \quad
        d = \mathrm{clip}\Big(\frac{\mu_B - \mu}{\sigma}, -d_{max}, d_{max}\Big), \quad
        y = \gamma \Big(\frac{x - \mu_B}{\sigma_B}\, r + d\Big) + \beta

    with the batch's mean and deviation :math:`\mu_B, \sigma_B` and the running ones :math:`\mu, \sigma` as
    they were before this batch. No gradient flows through :math:`r` and :math:`d`. Within the limits `y` is
    what evaluation gives; with the limits 1 and 0 it is batch norm. A deviation is the root of a variance
    plus `eps`; the running variance is unbiased, as torch keeps it (the paper averages deviations).

    Shape:
        `x` is ``(B, C, *)``, the result too.

    Args:
        x: Input, channels second.
        running_mean: Updated in training. Without running statistics this is plain batch norm.
        running_var: Updated in training.
        weight: Scale gamma per channel.
        bias: Shift beta per channel.
        training: Whether to use the batch's statistics. Otherwise this is batch norm in evaluation.
        momentum: Weight of the batch in the running statistics; a tensor where a compiler must not read it.
        eps: Added to variances.
        r_max: Largest :math:`r`, at least 1; a number or a tensor of one.
        d_max: Largest :math:`|d|`, at least 0; a number or a tensor of one.

    Ioffe, "Batch Renormalization", NeurIPS 2017, arXiv 1702.03275, Algorithm 1.

    Example:
        >>> import torch
        >>> from varshift import functional
        >>> x, mean, var = torch.tensor([[1.0], [3.0]]), torch.zeros(1), torch.ones(1)
        >>> functional.batch_renorm(x, mean, var, training=True, eps=1e-9)
        tensor([[1.],
                [3.]])
        >>> functional.batch_renorm(x, mean, var, training=True, eps=1e-9, r_max=1, d_max=0)
        tensor([[-1.],
                [ 1.]])
    """
    factor = 0.0 if isinstance(momentum, Tensor) else momentum
    if not training or running_mean is None or running_var is None or x.numel() == 0:
        return F.batch_norm(x, running_mean, running_var, weight, bias, training, factor, eps)
    with torch.no_grad():
        mean, var = _batch_statistics(x)
        deviation = (running_var.to(var.dtype) + eps).sqrt()
        scale = _clip((var + eps).sqrt() / deviation, 1 / r_max, r_max).to(running_var.dtype)
        shift = _clip((mean - running_mean) / deviation, -d_max, d_max).to(running_var.dtype)
        if isinstance(momentum, Tensor):
            count = x.numel() // x.shape[1]
            unbiased = var * (count / max(1, count - 1))
            for running, batch in ((running_mean, mean), (running_var, unbiased)):
                running.lerp_(batch.to(running.dtype), momentum.to(running.dtype))
    # batch norm with another scale and shift, in torch's own kernels
    bias = _sum(bias, shift if weight is None else weight * shift)
    weight = scale if weight is None else weight * scale
    return F.batch_norm(x, running_mean, running_var, weight, bias, True, factor, eps)


def _clip(values: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    return values.clamp(min=low).clamp(max=high)


def _sum(one: Tensor | None, other: Tensor) -> Tensor:
    return other if one is None else one + other


def _batch_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance per channel, in float32 at least."""
    if observed(x):
        wide = x if x.dtype == torch.float64 else x.float()
        var, mean = torch.var_mean(wide, [axis for axis in range(x.dim()) if axis != 1], correction=0)
        return mean, var
    if _rows_are_faster(x):
        count, rows = x.numel() // x.shape[1], x.flatten(2)
        mean = rows.sum(2).sum(0, dtype=torch.float64) / count
        squares = torch.linalg.vector_norm(rows, dim=2).double().square_().sum(0) / count
        var = squares - mean.square()
        if x.dtype == torch.float64 or bool((mean.square() <= _CANCELLATION * var).all()):
            return mean.to(x.dtype), var.to(x.dtype)
    if x.dtype in (
        torch.float16,
        torch.bfloat16,
    ):  # beside statistics in float32 the kernel answers in float32
        scratch = x.new_zeros(x.shape[1], dtype=torch.float32)
        return torch.batch_norm_update_stats(x, scratch, scratch.clone(), 0.0)
    return torch.batch_norm_update_stats(x, None, None, 0.0)


def _rows_are_faster(x: Tensor) -> bool:
    """On contiguous maps in main memory torch's batch norm walks value by value, a sum over maps does not."""
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and x.is_contiguous()
        and x[0, 0].numel() >= _LONG_ROWS
    )
