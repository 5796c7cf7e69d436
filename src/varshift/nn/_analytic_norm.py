"""Analytic normalisation: the norms of a network whose statistics are propagated, not measured."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import nn

from varshift._arguments import count, non_negative
from varshift.functional import KalmanState, analytic_norm

from ._shapes import require_axes


class AnalyticModule(nn.Module, ABC):
    """Base of modules whose `forward` takes a signal and its moments, and returns both behind the module.

    `varshift.nn.propagate` and `varshift.nn.AnalyticNetwork` hand such a module its state. Derive from it for
    blocks of your own, and call `propagate` for the layers inside.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from varshift.functional import KalmanState
        >>> from varshift.nn import AnalyticModule, AnalyticNetwork, propagate
        >>> class Halved(AnalyticModule):
        ...     def __init__(self, inner):
        ...         super().__init__()
        ...         self.inner = inner
        ...     def forward(self, x, state):
        ...         y, (mean, var) = propagate(self.inner, x, state)
        ...         return y / 2, KalmanState(mean / 2, var / 4)
        >>> net = AnalyticNetwork(Halved(nn.Linear(3, 2)), mean=[0.0] * 3, var=[1.0] * 3)
        >>> net(torch.randn(4, 3)).shape
        torch.Size([4, 2])
    """

    @abstractmethod
    def forward(self, x: torch.Tensor, state: KalmanState) -> tuple[torch.Tensor, KalmanState]:
        """The signal and its moments behind the module."""


class _AnalyticNorm(AnalyticModule):
    """The norm without the check of its input's axes."""

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    _axes: tuple[int, ...] = ()

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_features = count("num_features", num_features, 1)
        self.eps = non_negative("eps", eps)
        self.affine = affine
        for name in ("weight", "bias"):
            parameter = (
                nn.Parameter(torch.empty(num_features, device=device, dtype=dtype)) if affine else None
            )
            self.register_parameter(name, parameter)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Sets ``gamma`` to 1 and ``beta`` to 0."""
        if self.weight is not None:
            nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: torch.Tensor, state: KalmanState) -> tuple[torch.Tensor, KalmanState]:
        """Normalises ``x``.

        Args:
            x: The signal.
            state: Its mean and variance per channel, propagated from those of the data.

        Returns:
            The normalised signal and its moments.
        """
        require_axes(x, self._axes, self.num_features)
        return analytic_norm(x, state, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.num_features}, eps={self.eps:g}, affine={self.affine}"


_DOCUMENTATION = r"""Normalises {where} by moments propagated from the data set's through the current weights.

    .. math::

        y = \gamma\, \frac{{x - m}}{{\sqrt{{v + \epsilon}}}} + \beta

    with the mean ``m`` and the variance ``v`` of each channel over the data set and all positions. They are
    not measured: they are propagated from those of the network's input, through all weights in between, in
    every pass. They depend on no batch and remember nothing, so a batch of one will do, and training and
    evaluation are the same function. Gradients flow through them to the weights.

    The state is explicit: the norm takes the moments of its input and returns those of its output, ``beta``
    and ``gamma^2 v / (v + eps)``. `varshift.nn.AnalyticNetwork` hands states along by itself;
    `varshift.nn.propagate` passes them through one module.

    Moments are approximate: elements count as Gaussian, uncorrelated, and alike at all positions. Images and
    trained features are correlated over space, so their true variance is larger, often several times; the
    signal then leaves the norm with more than ``gamma^2``. The norm does not share the regularisation of
    batch norm, whose statistics are noisy.

    Shape:
        Input and output: {shape}. State: mean and variance of shape (C,).

    Args:
        num_features: Number of channels C.
        eps: Added to the variance; as torch's norms have it, for the paper's is not known.
        affine: Whether to learn ``gamma`` and ``beta``.
        device: Device of the parameters.
        dtype: Their type.

    Raises:
        ValueError: If an argument is out of range; in use, if shapes do not fit.

    Reference:
        A. Shekhovtsov, B. Flach, "Normalization of Neural Networks using Analytic Variance Propagation",
        arXiv 1803.10560, CVWW 2018. RECONSTRUCTED from its abstract and from section 5.2 of "Feed-forward
        Propagation in Probabilistic Neural Networks with Categorical and Max Layers", ICLR 2019, by the same
        group: the body could not be read, nor its results.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from varshift.functional import KalmanState
        >>> from varshift.nn import {name}, propagate
        >>> layer, norm = {layer}, {name}(8)
        >>> x, state = torch.randn({x}), KalmanState(torch.zeros(4), torch.ones(4))
        >>> y, state = norm(*propagate(layer, x, state))
        >>> y.shape, state.mean.shape
        (torch.Size([{y}]), torch.Size([8]))
    """


class AnalyticNorm1d(_AnalyticNorm):
    __doc__ = _DOCUMENTATION.format(
        where="vectors and sequences",
        shape="(N, C) or (N, C, L)",
        name="AnalyticNorm1d",
        layer="nn.Linear(4, 8)",
        x="16, 4",
        y="16, 8",
    )
    _axes = (2, 3)


class AnalyticNorm2d(_AnalyticNorm):
    __doc__ = _DOCUMENTATION.format(
        where="images",
        shape="(N, C, H, W)",
        name="AnalyticNorm2d",
        layer="nn.Conv2d(4, 8, 3, padding=1)",
        x="2, 4, 6, 6",
        y="2, 8, 6, 6",
    )
    _axes = (4,)


class AnalyticNorm3d(_AnalyticNorm):
    __doc__ = _DOCUMENTATION.format(
        where="volumes",
        shape="(N, C, D, H, W)",
        name="AnalyticNorm3d",
        layer="nn.Conv3d(4, 8, 3, padding=1)",
        x="2, 4, 6, 6, 6",
        y="2, 8, 6, 6, 6",
    )
    _axes = (5,)
