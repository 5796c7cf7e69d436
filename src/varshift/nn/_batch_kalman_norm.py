"""Batch Kalman normalisation."""

from __future__ import annotations

import torch
from torch import nn

from varshift._arguments import between, count
from varshift.functional import KalmanState, batch_kalman_norm

from ._kalman_norm import KalmanNorm
from ._kalman_transition import TRANSITIONS, KalmanTransition
from ._shapes import require_axes


class _BatchKalmanNorm(KalmanNorm):
    """The norm without the check of its input's axes."""

    running_mean: torch.Tensor
    running_var: torch.Tensor
    num_batches_tracked: torch.Tensor

    _axes: tuple[int, ...] = ()

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        *,
        transition: str = "conv-moments",
        prediction_weight: float = 0.9,
        learn_prediction_weight: bool = False,
        state_source: str = "raw",
        detach_state: bool = False,
        splits: int = 1,
        previous_features: int | None = None,
        negative_slope: float = 0.0,
        guard: float = 100.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        num_features = count("num_features", num_features, 1)
        super().__init__(
            num_features,
            KalmanTransition(
                transition, TRANSITIONS, num_features, previous_features, negative_slope, device, dtype
            ),
            prediction_weight,
            learn_prediction_weight,
            state_source,
            detach_state,
            guard,
            eps,
            affine,
            device,
            dtype,
        )
        self.num_features = num_features
        self.momentum = None if momentum is None else between("momentum", momentum, 0, 1)
        self.splits = count("splits", splits, 1)
        self.register_buffer("running_mean", torch.empty(num_features, device=device, dtype=dtype))
        self.register_buffer("running_var", torch.empty(num_features, device=device, dtype=dtype))
        self.register_buffer("num_batches_tracked", torch.zeros((), device=device, dtype=torch.long))
        self.reset_parameters()

    def reset_running_stats(self) -> None:
        """Forgets the running statistics."""
        self.running_mean.zero_()
        self.running_var.fill_(1)
        self.num_batches_tracked.zero_()

    def reset_parameters(self) -> None:
        """Restores a new layer."""
        super().reset_parameters()
        self.reset_running_stats()

    def forward(
        self,
        x: torch.Tensor,
        state: KalmanState | None = None,
        layer: nn.Module | torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, KalmanState]:
        """Normalises ``x``.

        Args:
            x: The signal.
            state: What the previous norm returned; None at the head of a chain.
            layer: The convolution or linear layer between the previous norm and this one, or its weight.

        Returns:
            The normalised signal and the state for the next norm.
        """
        require_axes(x, self._axes, self.num_features)
        prediction, momentum = None, self.momentum
        if self.training and x.numel():
            prediction = self.transition(state, layer, tuple(x.shape[2:]))
            self.num_batches_tracked.add_(1)
            if momentum is None:
                precision = torch.promote_types(self.running_mean.dtype, torch.float32)
                momentum = self.num_batches_tracked.to(precision).reciprocal()
        y, own = batch_kalman_norm(
            x,
            prediction,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.prediction_weight,
            self.training,
            0.0 if momentum is None else momentum,
            self.eps,
            self.splits,
            self.guard,
        )
        after = own
        if self.state_source == "post-affine":
            mean = torch.zeros_like(own.mean) if self.bias is None else self.bias.to(own.mean)
            var = torch.ones_like(own.var) if self.weight is None else self.weight.to(own.var).square()
            after = KalmanState(mean.expand_as(own.mean), var.expand_as(own.var))
        return y, self._handed_on(own, after)

    def extra_repr(self) -> str:
        """The arguments that differ from layer to layer."""
        return f"{self.num_features}, momentum={self.momentum}, splits={self.splits}, {super().extra_repr()}"


_DOCUMENTATION = r"""Batch normalisation whose statistics are fused with a prediction, for {where}.

    The prediction comes from the statistics of the norm before, passed through what lies between the two.
    With micro-batches it steadies statistics that a few samples cannot give.

    .. math::

        \mu = \pi \mu' + (1 - \pi) \bar x, \qquad
        v = \pi v' + (1 - \pi) S + \pi (1 - \pi) (\bar x - \mu')^2, \qquad
        y = \gamma\, (x - \mu) / \sqrt{{v + \epsilon}} + \beta

    with the batch's mean and biased variance ``x_bar, S``, the prediction ``mu', v'`` and its weight ``pi``.
    ``pi = 0``, no state, and ``transition="none"`` give batch norm.

    The state is explicit: a norm takes the state that the previous norm returned, and the layer that lies
    between them behind a ReLU, and returns the state for the next. A residual block adds states
    (`varshift.functional.add_kalman_states`) as it adds features; the norm behind the join has
    ``transition="identity"``, for the sum already predicts its input.

    In evaluation this is batch norm with running statistics: no state is needed, and the returned one holds
    the running statistics. They are moving averages of the fused moments, averaged over the splits, with the
    biased variance as released (torch keeps the unbiased one).

    Shape:
        Input and output: {shape}. State: (splits, C) in training, (1, C) in evaluation.

    Args:
        num_features: Number of channels C.
        eps: Added to the variance.
        momentum: Share of the new statistics in the running ones; None for a cumulative average.
        affine: Whether to learn ``gamma`` and ``beta``.
        transition: How the prediction is made. ``"conv-moments"``: the closed form of moments behind ReLU
            and the given convolution or linear layer (derived for this package; the released mechanism
            without its noise). ``"conv-sample"``: one random map per split through ReLU and the convolution,
            as released; its size is taken to be that of ``x`` times the stride. ``"linear"``: a learned
            matrix and noise variance, RECONSTRUCTED from memory of the paper, with initial values of our
            choice (the identity, or a scaled random matrix where the numbers of channels differ; 0.01); the
            layer between is not used. ``"identity"``: the state is the prediction. ``"none"``: batch norm.
        prediction_weight: ``pi`` in [0, 1], the papers' p; it is not a drop probability. The only published
            settings are 0.9 for two samples per split and 0.05 for 128.
        learn_prediction_weight: Whether ``pi`` is learned, as the sigmoid of one scalar per layer. Our
            choice: the paper is recalled to learn a gain, the released code does not. Leave it off at the
            head of a chain, where there is no prediction to weigh.
        state_source: Which moments are handed on. ``"raw"``: the fused ones in front of the affine map, as
            released, although the next layer sees the signal behind it. ``"post-affine"``: ``beta, gamma^2``.
        detach_state: Whether gradients stop at the state that is handed on; released: no.
        splits: Number of equal slices of the batch, each normalised with its own statistics: micro-batches
            within a batch, as the released experiments simulate them.
        previous_features: Number of channels of the state, for ``transition="linear"``.
        negative_slope: Slope of the activation's negative side in front of the layer; 1 for no activation.
        guard: Mean ratio of predicted to observed variance from which a split falls back to batch norm; 100
            as released.
        device: Device of parameters and buffers.
        dtype: Their type.

    Raises:
        ValueError: If an argument is out of range; in use, if shapes do not fit, the batch does not divide
            into the splits, or the layer between is missing.

    Reference:
        G. Wang, J. Peng, P. Luo, X. Wang, L. Lin, "Batch Kalman Normalization: Towards Training Deep Neural
        Networks with Micro-Batches", arXiv 1802.03133; "Kalman Normalization: Normalizing Internal
        Representations Across Network Layers", NeurIPS 2018. Built after the authors' released code: diagonal
        and with a fixed weight. The papers' bodies could not be read; their full covariance matrices are not
        offered.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from varshift.nn import {name}
        >>> first, between, second = {name}(4), {between}, {name}(8)
        >>> x = torch.randn({x})
        >>> y, state = first(x)
        >>> y, state = second(between(torch.relu(y)), state, between)
        >>> y.shape, state.mean.shape
        (torch.Size([{y}]), torch.Size([1, 8]))
    """


class BatchKalmanNorm1d(_BatchKalmanNorm):
    __doc__ = _DOCUMENTATION.format(
        where="vectors and sequences",
        shape="(N, C) or (N, C, L)",
        name="BatchKalmanNorm1d",
        between="nn.Linear(4, 8)",
        x="16, 4",
        y="16, 8",
    )
    _axes = (2, 3)


class BatchKalmanNorm2d(_BatchKalmanNorm):
    __doc__ = _DOCUMENTATION.format(
        where="images",
        shape="(N, C, H, W)",
        name="BatchKalmanNorm2d",
        between="nn.Conv2d(4, 8, 3, padding=1)",
        x="2, 4, 6, 6",
        y="2, 8, 6, 6",
    )
    _axes = (4,)
