"""Batch norm that keeps its running statistics in training, too."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from varshift._arguments import count, non_negative


class FrozenBatchNorm(nn.Module):
    r"""Batch norm that always normalises with its stored statistics and never updates them.

    .. math:: y = \gamma \frac{x - \mu}{\sqrt{\sigma^2 + \varepsilon}} + \beta

    Training and evaluation are the same, ``train()`` changes nothing, and no sample sees its batch mates. The
    statistics must be good before they are frozen (`varshift.recalibrate`).

    Shape:
        ``(B, C)``, ``(B, C, L)``, ``(B, C, H, W)`` or ``(B, C, D, H, W)`` to the same.

    Args:
        num_features: C.
        eps: Added to the variance, at least 0.
        affine: Whether there is a gamma and a beta.
        trainable: Whether they are parameters that go on learning. By default they are buffers, which no
            optimiser and no weight decay can reach.
        device: Of all tensors.
        dtype: Of all tensors but the counter.

    Raises:
        ValueError: If `eps` is negative, or the input does not fit.

    Its state has the keys of torch's batch norm, so that either loads the other's; `num_batches_tracked` is
    kept for that and never counts. A state without it, as torchvision's `FrozenBatchNorm2d` writes, loads
    too. `freeze_batch_norm` puts such layers into a network.

    Freezing the statistics for the last epochs is a remedy of Wu & Johnson, "Rethinking 'Batch' in
    BatchNorm", arXiv 2105.07576, known here through summaries.

    Example:
        >>> import torch
        >>> from varshift import nn
        >>> norm = torch.nn.BatchNorm2d(3)
        >>> frozen = nn.FrozenBatchNorm.of(norm)
        >>> x = torch.randn(4, 3, 8, 8)
        >>> torch.equal(frozen.train()(x), norm.eval()(x))
        True
        >>> list(frozen.parameters())
        []
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    weight: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        affine: bool = True,
        trainable: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        size, factory = count("num_features", num_features, 1), {"device": device, "dtype": dtype}
        self.eps = non_negative("eps", eps)
        self._fill(
            torch.empty(size, **factory) if affine else None,
            torch.empty(size, **factory) if affine else None,
            torch.empty(size, **factory),
            torch.empty(size, **factory),
            torch.empty((), dtype=torch.long, device=device),
            trainable,
        )
        self.reset_parameters()

    @classmethod
    def of(cls, norm: _BatchNorm, trainable: bool = False) -> FrozenBatchNorm:
        """The frozen form of a batch norm. It shares the norm's tensors.

        Args:
            norm: A batch norm of torch's with running statistics.
            trainable: Whether gamma and beta remain the norm's own parameters, or become buffers.

        Raises:
            ValueError: If the norm has no running statistics.
        """
        mean, var, counter = norm.running_mean, norm.running_var, norm.num_batches_tracked
        if mean is None or var is None:
            raise ValueError(
                f"norm={norm} has no running statistics to freeze: build it with track_running_stats=True."
            )
        if counter is None:
            counter = torch.zeros((), dtype=torch.long, device=mean.device)
        frozen = cls.__new__(cls)
        nn.Module.__init__(frozen)
        frozen.eps = norm.eps
        frozen._fill(norm.weight, norm.bias, mean, var, counter, trainable)
        return frozen.train(norm.training)

    def _fill(
        self,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        var: Tensor,
        counter: Tensor,
        trainable: bool,
    ) -> None:
        self.num_features, self.trainable = mean.numel(), trainable
        for name, value in (("weight", weight), ("bias", bias)):
            if value is None:  # a buffer that is None puts torch.export off its count
                self.register_parameter(name, None)
            elif not trainable:
                self.register_buffer(name, value.detach())
            else:
                parameter = value if isinstance(value, nn.Parameter) else nn.Parameter(value)
                self.register_parameter(name, parameter)
        self.register_buffer("running_mean", mean)
        self.register_buffer("running_var", var)
        self.register_buffer("num_batches_tracked", counter)

    @property
    def affine(self) -> bool:
        """Whether there is a gamma."""
        return self.weight is not None

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Sets the statistics to mean 0 and variance 1, and gamma and beta to 1 and 0."""
        for value, initial in (
            (self.weight, 1),
            (self.bias, 0),
            (self.running_mean, 0),
            (self.running_var, 1),
            (self.num_batches_tracked, 0),
        ):
            if value is not None:
                value.fill_(initial)

    def forward(self, input: Tensor) -> Tensor:
        """Normalises with the stored statistics."""
        if input.dim() < 2 or input.shape[1] != self.num_features:
            raise ValueError(
                f"The input has the shape {tuple(input.shape)}, but FrozenBatchNorm was built with "
                f"num_features={self.num_features}: that must be the size of axis 1."
            )
        return F.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
        )

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *arguments: Any) -> None:
        state_dict.setdefault(prefix + "num_batches_tracked", self.num_batches_tracked)
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.num_features}, eps={self.eps:g}, affine={self.affine}, trainable={self.trainable}"
