"""What the Kalman norms share: the weight of the prediction, the state they hand on, their parameters."""

from __future__ import annotations

import math

import torch
from torch import nn

from varshift._arguments import between, count, non_negative, positive
from varshift.functional import KalmanState

from ._kalman_transition import KalmanTransition

STATE_SOURCES = ("raw", "post-affine")


class KalmanNorm(nn.Module):
    """Base of the Kalman norms; `features` are what a state has a column for."""

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    weight_logit: nn.Parameter | None

    def __init__(
        self,
        channels: int,
        transition: KalmanTransition,
        prediction_weight: float,
        learn_prediction_weight: bool,
        state_source: str,
        detach_state: bool,
        guard: float,
        eps: float,
        affine: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        count("channels", channels, 1)
        self.transition = transition
        self.initial_prediction_weight = between("prediction_weight", prediction_weight, 0, 1)
        if learn_prediction_weight and prediction_weight in (0, 1):
            raise ValueError(
                f"prediction_weight={prediction_weight!r} must be inside (0, 1) to be learned: "
                "it is the sigmoid of a parameter."
            )
        if state_source not in STATE_SOURCES:
            raise ValueError(
                f"state_source={state_source!r} must be one of {', '.join(map(repr, STATE_SOURCES))}."
            )
        self.state_source = state_source
        self.detach_state = detach_state
        self.guard = guard if guard == math.inf else positive("guard", guard)
        self.eps = non_negative("eps", eps)
        self.affine = affine
        for name, shape, wanted in (
            ("weight", (channels,), affine),
            ("bias", (channels,), affine),
            ("weight_logit", (), learn_prediction_weight),
        ):
            parameter = nn.Parameter(torch.empty(shape, device=device, dtype=dtype)) if wanted else None
            self.register_parameter(name, parameter)

    @property
    def prediction_weight(self) -> float | torch.Tensor:
        """Weight of the prediction against the observation; a tensor where it is learned."""
        if self.weight_logit is None:
            return self.initial_prediction_weight
        precision = torch.promote_types(self.weight_logit.dtype, torch.float32)
        return torch.sigmoid(self.weight_logit.to(precision))

    def reset_parameters(self) -> None:
        """Restores the parameters of a new layer."""
        self.transition.reset_parameters()
        if self.weight is not None:
            nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        if self.weight_logit is not None:
            p = self.initial_prediction_weight
            nn.init.constant_(self.weight_logit, math.log(p / (1 - p)))

    def _handed_on(self, state: KalmanState, after: KalmanState) -> KalmanState:
        """The state for the next norm: `state`, or `after` where the affine map is to be counted in."""
        if self.state_source == "post-affine":
            state = after
        return KalmanState(state.mean.detach(), state.var.detach()) if self.detach_state else state

    def extra_repr(self) -> str:
        """The arguments that differ from layer to layer."""
        parts = [
            f"prediction_weight={self.initial_prediction_weight:g}",
            f"eps={self.eps:g}",
            f"affine={self.affine}",
        ]
        if self.weight_logit is not None:
            parts.append("learn_prediction_weight=True")
        if self.state_source != "raw":
            parts.append(f"state_source={self.state_source!r}")
        if self.detach_state:
            parts.append("detach_state=True")
        return ", ".join(parts)
