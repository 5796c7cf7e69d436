"""Batch renormalisation (Ioffe 2017), as layers, and the schedule of its limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from varshift._arguments import between, count, non_negative, positive
from varshift.functional import batch_renorm

from ._shapes import require_features


@dataclass(frozen=True)
class RenormClipping:
    """How far batch renormalisation may correct a batch, as a function of the training step.

    Both limits stay closed (1 and 0: plain batch norm) for `warmup` steps and then open along straight lines,
    that of the scale until step `scale_end`, that of the shift until `shift_end`. An object holds no step of
    its own: a layer asks it with its `num_batches_tracked`, which travels in the `state_dict`.

    The defaults are the published schedule for 50 workers with 32 images each, as a secondary source gives
    it. That the limits move along straight lines is recalled, not read.

    Args:
        scale: Final `r_max`, at least 1.
        shift: Final `d_max`, at least 0.
        warmup: Steps with closed limits.
        scale_end: Step at which `r_max` is reached.
        shift_end: Step at which `d_max` is reached.

    Raises:
        ValueError: If a limit is out of range, or an end lies before the end of the warm-up.

    Example:
        >>> import torch
        >>> from varshift import nn
        >>> clipping = nn.RenormClipping()
        >>> [tuple(float(x) for x in clipping(torch.tensor(step))) for step in (5_000, 15_000, 40_000)]
        [(1.0, 0.0), (1.5714285714285714, 2.5), (3.0, 5.0)]
        >>> nn.RenormClipping.fixed(2, 1)(torch.tensor(1))
        (tensor(2., dtype=torch.float64), tensor(1., dtype=torch.float64))
    """

    scale: float = 3.0
    shift: float = 5.0
    warmup: int = 5_000
    scale_end: int = 40_000
    shift_end: int = 25_000

    def __post_init__(self) -> None:
        if between("scale", self.scale, 0, float("1e30")) < 1:
            raise ValueError(f"scale={self.scale!r} must be at least 1: it is the largest factor r.")
        non_negative("shift", self.shift)
        count("warmup", self.warmup, 0)
        for name in ("scale_end", "shift_end"):
            if count(name, getattr(self, name), 0) < self.warmup:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} must not lie before the end of the warm-up, "
                    f"warmup={self.warmup!r}."
                )

    @classmethod
    def fixed(cls, scale: float, shift: float) -> RenormClipping:
        """Limits that hold from the first step on."""
        return cls(scale, shift, 0, 0, 0)

    def __call__(self, step: Tensor) -> tuple[Tensor, Tensor]:
        """The limits `r_max` and `d_max` in a training step, counted from 1; all tensors of one number."""
        step = step.to(torch.float32 if step.device.type == "mps" else torch.float64)
        return (
            1 + (self.scale - 1) * _ramp(step, self.warmup, self.scale_end),
            self.shift * _ramp(step, self.warmup, self.shift_end),
        )


def _ramp(step: Tensor, start: int, end: int) -> Tensor:
    """0 until `start`, 1 from `end` on, and a straight line in between."""
    if start == end:
        return (step > start).to(step.dtype)
    return ((step - start) / (end - start)).clamp(0, 1)


class _BatchRenorm(_BatchNorm):
    """What the layers share: torch's batch norm with another forward."""

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.01,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        clipping: Callable[[Tensor], tuple[Any, Any]] | None = None,
    ) -> None:
        positive("eps", eps)
        if momentum is not None:
            between("momentum", momentum, 0, 1)
        super().__init__(
            count("num_features", num_features, 1), eps, momentum, affine, track_running_stats, device, dtype
        )
        self.clipping = RenormClipping() if clipping is None else clipping

    def forward(self, input: Tensor) -> Tensor:
        """Normalises."""
        self._check_input_dim(input)
        require_features(self, input, self.num_features)
        mean, var, counter = self.running_mean, self.running_var, self.num_batches_tracked
        if not self.training:
            batch = mean is None and var is None
            return batch_renorm(input, mean, var, self.weight, self.bias, batch, 0.0, self.eps)
        if not self.track_running_stats or mean is None or var is None or counter is None:
            return batch_renorm(input, None, None, self.weight, self.bias, True, 0.0, self.eps)
        counter.add_(1)
        momentum: float | Tensor | None = self.momentum
        if momentum is None:  # a cumulative average
            momentum = counter.reciprocal() if torch.compiler.is_compiling() else 1.0 / float(counter)
        limits = self.clipping(counter)
        return batch_renorm(input, mean, var, self.weight, self.bias, True, momentum, self.eps, *limits)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{super().extra_repr()}, clipping={self.clipping}"


class BatchRenorm1d(_BatchRenorm, nn.BatchNorm1d):
    """Batch renormalisation of features ``(B, C)`` or sequences ``(B, C, L)``.

    See `BatchRenorm2d` for the formula and the arguments.

    Example:
        >>> import torch
        >>> from varshift import nn
        >>> nn.BatchRenorm1d(4)(torch.randn(8, 4)).shape
        torch.Size([8, 4])
    """


class BatchRenorm2d(_BatchRenorm, nn.BatchNorm2d):
    r"""Batch renormalisation of images: batch norm that trains on nearly what evaluation computes.

    .. math::

        r = \mathrm{clip}\Big(\frac{\sigma_B}{\sigma}, \frac{1}{r_{max}}, r_{max}\Big), \quad
        d = \mathrm{clip}\Big(\frac{\mu_B - \mu}{\sigma}, -d_{max}, d_{max}\Big), \quad
        y = \gamma \Big(\frac{x - \mu_B}{\sigma_B}\, r + d\Big) + \beta

    with the batch's statistics :math:`\mu_B, \sigma_B`, the running ones :math:`\mu, \sigma` before this
    batch, and no gradient through :math:`r` and :math:`d`. Small or oddly composed batches then train the
    network that will be deployed. With the limits 1 and 0 the layer is batch norm in output, gradient and
    statistics, and so it starts; a `RenormClipping` says when the limits open.

    It is a ``torch.nn.BatchNorm2d`` with the same parameters and buffers: either loads the other's state, and
    in evaluation the two are the same. Two things follow. ``SyncBatchNorm.convert_sync_batchnorm`` would make
    plain synchronised norms of it. And the step of the schedule is `num_batches_tracked`: whatever sets that
    counter back, be it ``reset_running_stats()`` or a recalibration of the statistics, starts the schedule
    again; training that goes on from there should be given ``clipping=RenormClipping.fixed(3, 5)``.

    Shape:
        ``(B, C, H, W)`` to the same.

    Args:
        num_features: C.
        eps: Added to variances.
        momentum: Weight of a batch in the running statistics, None for a cumulative average. The default is
            that of the paper as recalled, not as read; torch's batch norm has 0.1.
        affine: Whether to learn gamma and beta.
        track_running_stats: Without running statistics the layer is plain batch norm.
        device: Of parameters and buffers.
        dtype: Of parameters and floating buffers.
        clipping: The limits: a `RenormClipping` (its published defaults when None), or any function from the
            step, a tensor, to the two limits, numbers or tensors.

    Raises:
        ValueError: If an argument is out of range, or the input does not fit.

    Ioffe, "Batch Renormalization: Towards Reducing Minibatch Dependence in Batch-Normalized Models", NeurIPS
    2017, arXiv 1702.03275, Algorithm 1, which was not available in full. Deviation: the paper averages
    deviations; here, as in torch, unbiased variances are averaged and the root is taken of them plus eps.

    Example:
        >>> import torch
        >>> from varshift import nn
        >>> layer = nn.BatchRenorm2d(3, clipping=nn.RenormClipping.fixed(3, 5))
        >>> x = torch.randn(4, 3, 8, 8)
        >>> before = layer.eval()(x)
        >>> torch.allclose(layer.train()(x), before, atol=1e-5)  # within the limits, training is evaluation
        True
    """


class BatchRenorm3d(_BatchRenorm, nn.BatchNorm3d):
    """Batch renormalisation of volumes ``(B, C, D, H, W)``.

    See `BatchRenorm2d` for the formula and the arguments.

    Example:
        >>> import torch
        >>> from varshift import nn
        >>> nn.BatchRenorm3d(4)(torch.randn(2, 4, 3, 5, 5)).shape
        torch.Size([2, 4, 3, 5, 5])
    """
