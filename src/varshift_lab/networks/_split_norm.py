"""Norms that see small batches within a large one, as on several devices that do not share statistics."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from varshift._arguments import count
from varshift.functional import batch_renorm
from varshift.nn import RenormClipping


class SplitBatchNorm2d(nn.Module):
    """Batch norm that normalises equal slices of the batch, each with its own statistics.

    Gradients are those of the whole batch, so that the size of the slices is all that differs between two
    runs: as when several devices share a batch, or as the released experiments of batch Kalman norm simulate
    micro-batches. The running statistics move towards the mean of the slices' ones. In evaluation it is batch
    norm, and so it is with one slice.

    Shape:
        ``(N, C, H, W)`` to the same; in training `splits` must divide N.

    Args:
        num_features: C.
        splits: Number of slices, at least 1.
        eps: Added to variances.
        momentum: Weight of a batch in the running statistics.

    Raises:
        ValueError: If the batch does not divide into the slices.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self, num_features: int, splits: int = 1, *, eps: float = 1e-5, momentum: float = 0.1
    ) -> None:
        super().__init__()
        self.num_features = count("num_features", num_features, 1)
        self.splits = count("splits", splits, 1)
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        """Normalises."""
        mean, var = self.running_mean, self.running_var
        if not self.training:
            return F.batch_norm(x, mean, var, self.weight, self.bias, False, 0.0, self.eps)
        if x.shape[0] % self.splits:
            raise ValueError(
                f"splits={self.splits} must divide the batch of {x.shape[0]}: drop the last batch, or "
                "choose a divisor."
            )
        self.num_batches_tracked.add_(1)
        # The slices side by side as channels of a batch of their size.
        slices = x.unflatten(0, (self.splits, -1)).transpose(0, 1)
        own = [part.repeat(self.splits) for part in (mean, var, self.weight, self.bias)]
        y = self._normalise(slices.flatten(1, 2), *own)
        with torch.no_grad():
            for running, parts in ((mean, own[0]), (var, own[1])):
                running.copy_(parts.unflatten(0, (self.splits, -1)).mean(0))
        return y.unflatten(1, (self.splits, -1)).transpose(0, 1).flatten(0, 1)

    def _normalise(self, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.batch_norm(x, mean, var, weight, bias, True, self.momentum, self.eps)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.num_features}, splits={self.splits}, eps={self.eps}, momentum={self.momentum}"


class SplitBatchRenorm2d(SplitBatchNorm2d):
    """Batch renormalisation of equal slices of the batch, see `SplitBatchNorm2d`.

    All slices are corrected towards the same running statistics.

    Args:
        num_features: C.
        splits: Number of slices, at least 1.
        eps: Added to variances.
        momentum: Weight of a batch in the running statistics.
        clipping: The limits of the correction, see `varshift.nn.RenormClipping`.
    """

    def __init__(
        self,
        num_features: int,
        splits: int = 1,
        *,
        eps: float = 1e-5,
        momentum: float = 0.01,
        clipping: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        super().__init__(num_features, splits, eps=eps, momentum=momentum)
        self.clipping = RenormClipping() if clipping is None else clipping

    def _normalise(self, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        limits = self.clipping(self.num_batches_tracked)
        return batch_renorm(x, mean, var, weight, bias, True, self.momentum, self.eps, *limits)
