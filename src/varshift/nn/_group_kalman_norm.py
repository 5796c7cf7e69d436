"""Group Kalman normalisation."""

from __future__ import annotations

import torch
from torch import nn

from varshift._arguments import count
from varshift.functional import KalmanState, group_kalman_norm

from ._kalman_norm import KalmanNorm
from ._kalman_transition import TRANSITIONS, KalmanTransition
from ._shapes import require_axes


class GroupKalmanNorm2d(KalmanNorm):
    r"""Group normalisation whose statistics are fused with a prediction, sample by sample.

    .. math::

        \mu = \pi \mu' + (1 - \pi) \bar x, \qquad
        v = \pi v' + (1 - \pi) S + \pi (1 - \pi) (\bar x - \mu')^2, \qquad
        y = \gamma\, (x - \mu) / \sqrt{v + \epsilon} + \beta

    with mean and biased variance ``x_bar, S`` of each sample's group, the prediction ``mu', v'`` from the
    groups of the norm before, and its weight ``pi``. ``pi = 0``, no state, and ``transition="none"`` give
    group norm. Training and evaluation are the same, nothing is remembered, and samples do not depend on each
    other; so the state is needed in evaluation too.

    RECONSTRUCTED: it is known that the paper equips group norm, but its definition could not be read and no
    code of the authors is public. Every detail here is our choice.

    Shape:
        Input and output: (N, C, H, W). State: (N, num_groups).

    Args:
        num_groups: Number of groups; must divide `num_channels`.
        num_channels: Number of channels C.
        eps: Added to the variance.
        affine: Whether to learn ``gamma`` and ``beta`` per channel.
        transition: How the prediction is made. ``"conv-moments"``: the closed form of moments behind ReLU and
            the given convolution, each channel taken with its group's moments, united over the output groups.
            ``"linear"``: a learned matrix between groups and a noise variance. ``"identity"``: the state is
            the prediction. ``"none"``: group norm.
        prediction_weight: ``pi`` in [0, 1], the papers' p; it is not a drop probability.
        learn_prediction_weight: Whether ``pi`` is learned, as the sigmoid of one scalar.
        state_source: ``"raw"`` hands on the fused moments, ``"post-affine"`` those behind the affine map: of
            each group, the mean of ``beta``, and the mean of ``gamma^2`` plus the variance of ``beta``.
        detach_state: Whether gradients stop at the state that is handed on.
        previous_groups: Number of groups of the state, for ``transition="linear"``.
        negative_slope: Slope of the activation's negative side in front of the layer; 1 for no activation.
        guard: Mean ratio of predicted to observed variance from which a sample falls back to group norm.
        device: Device of the parameters.
        dtype: Their type.

    Raises:
        ValueError: If an argument is out of range, or the groups do not divide the channels.

    Reference:
        G. Wang, J. Peng, P. Luo, X. Wang, L. Lin, "Kalman Normalization: Normalizing Internal Representations
        Across Network Layers", NeurIPS 2018; see the warning above.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from varshift.nn import GroupKalmanNorm2d
        >>> first, between, second = GroupKalmanNorm2d(2, 4), nn.Conv2d(4, 6, 3), GroupKalmanNorm2d(3, 6)
        >>> y, state = first(torch.randn(2, 4, 8, 8))
        >>> y, state = second(between(torch.relu(y)), state, between)
        >>> y.shape, state.mean.shape
        (torch.Size([2, 6, 6, 6]), torch.Size([2, 3]))
    """

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        *,
        transition: str = "conv-moments",
        prediction_weight: float = 0.9,
        learn_prediction_weight: bool = False,
        state_source: str = "raw",
        detach_state: bool = False,
        previous_groups: int | None = None,
        negative_slope: float = 0.0,
        guard: float = 100.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        num_groups = count("num_groups", num_groups, 1)
        num_channels = count("num_channels", num_channels, 1)
        if num_channels % num_groups:
            raise ValueError(f"num_groups={num_groups} must divide num_channels={num_channels}.")
        allowed = [kind for kind in TRANSITIONS if kind != "conv-sample"]
        super().__init__(
            num_channels,
            KalmanTransition(transition, allowed, num_groups, previous_groups, negative_slope, device, dtype),
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
        self.num_groups = num_groups
        self.num_channels = num_channels
        self.reset_parameters()

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
            layer: The convolution between the previous norm and this one, or its weight.

        Returns:
            The normalised signal and the state for the next norm.
        """
        require_axes(x, (4,), self.num_channels)
        prediction = self.transition(state, layer, tuple(x.shape[2:]), self.num_groups)
        y, own = group_kalman_norm(
            x,
            self.num_groups,
            prediction,
            self.weight,
            self.bias,
            self.prediction_weight,
            self.eps,
            self.guard,
        )
        after = own
        if self.state_source == "post-affine":
            ones = own.mean.new_ones(self.num_channels)
            weight = ones if self.weight is None else self.weight.to(ones)
            bias = torch.zeros_like(ones) if self.bias is None else self.bias.to(ones)
            spread, mean = torch.var_mean(bias.unflatten(0, (self.num_groups, -1)), -1, correction=0)
            var = weight.square().unflatten(0, (self.num_groups, -1)).mean(-1) + spread
            after = KalmanState(mean.expand_as(own.mean), var.expand_as(own.var))
        return y, self._handed_on(own, after)

    def extra_repr(self) -> str:
        """The arguments that differ from layer to layer."""
        return f"{self.num_groups}, {self.num_channels}, {super().extra_repr()}"
