"""How a Kalman norm predicts the moments of its input from those that the norm before it handed over."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from varshift._arguments import count, finite
from varshift.functional import (
    KalmanState,
    conv_moments,
    conv_sample_moments,
    group_conv_moments,
    linear_moments,
)

TRANSITIONS = ("conv-moments", "conv-sample", "linear", "identity", "none")
_FIRST_NOISE = 0.01  # our choice, as the initial matrix is: the paper's values could not be read


class KalmanTransition(nn.Module):
    """The transition of one norm; holds parameters only where it is ``"linear"``."""

    def __init__(
        self,
        kind: str,
        allowed: Iterable[str],
        features: int,
        previous_features: int | None,
        negative_slope: float,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        allowed = tuple(allowed)
        if kind not in allowed:
            raise ValueError(f"transition={kind!r} must be one of {', '.join(map(repr, allowed))}.")
        self.kind = kind
        self.features = features
        self.negative_slope = finite("negative_slope", negative_slope)
        if previous_features is not None and kind != "linear":
            raise ValueError(
                f"previous_features={previous_features!r} is for transition='linear': leave it out "
                f"for {kind!r}."
            )
        self.matrix: nn.Parameter | None
        self.noise: nn.Parameter | None
        if kind == "linear":
            before = count(
                "previous_features", features if previous_features is None else previous_features, 1
            )
            self.matrix = nn.Parameter(torch.empty(features, before, device=device, dtype=dtype))
            self.noise = nn.Parameter(torch.empty(features, device=device, dtype=dtype))
        else:
            self.register_parameter("matrix", None)
            self.register_parameter("noise", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The identity where input and output are as many, else a scaled random matrix; little noise."""
        if self.matrix is None or self.noise is None:
            return
        if self.matrix.shape[0] == self.matrix.shape[1]:
            nn.init.eye_(self.matrix)
        else:
            nn.init.normal_(self.matrix, std=1 / math.sqrt(self.matrix.shape[1]))
        nn.init.constant_(self.noise, math.log(math.expm1(_FIRST_NOISE)))

    def forward(
        self,
        state: KalmanState | None,
        layer: nn.Module | torch.Tensor | None,
        size: tuple[int, ...],
        num_groups: int | None = None,
    ) -> KalmanState | None:
        """The prediction, None where there is nothing to predict from.

        Args:
            state: What the norm before handed over.
            layer: What lies between, behind an activation: a convolution, a linear layer, or its weight.
            size: Extents of the norm's input.
            num_groups: Number of groups where states are those of groups.
        """
        if state is None or self.kind == "none":
            return None
        if self.kind == "identity":
            return state
        if self.matrix is not None and self.noise is not None:
            noise = nn.functional.softplus(self.noise.to(state.var.dtype))
            return linear_moments(state, self.matrix, noise)
        weight, bias, groups, stride, dilation = _parts(layer, self.kind)
        if weight.shape[0] != self.features and num_groups is None:
            raise ValueError(
                f"layer gives {weight.shape[0]} channels: this norm has {self.features}; "
                "pass the layer whose output it normalises."
            )
        if num_groups is not None:
            return group_conv_moments(state, num_groups, weight, bias, groups, self.negative_slope)
        if self.kind == "conv-moments":
            return conv_moments(state, weight, bias, groups, self.negative_slope)
        # A convolution that keeps the size but for its stride had an input of this size.
        before = tuple(extent * step for extent, step in zip(size, stride or [1] * len(size), strict=True))
        return conv_sample_moments(state, weight, before, bias, dilation or 1, groups, self.negative_slope)

    def extra_repr(self) -> str:
        """The kind, and what it depends on."""
        if self.matrix is not None:
            return f"{self.kind!r}, {self.matrix.shape[1]} to {self.matrix.shape[0]}"
        return repr(self.kind) + (f", negative_slope={self.negative_slope:g}" if self.negative_slope else "")


def _parts(
    layer: nn.Module | torch.Tensor | None, kind: str
) -> tuple[torch.Tensor, torch.Tensor | None, int, tuple[int, ...] | None, tuple[int, ...] | None]:
    """Weight, bias, groups, stride and dilation of a layer."""
    if isinstance(layer, torch.Tensor):
        return layer, None, 1, None, None
    if isinstance(layer, nn.Linear):
        return layer.weight, layer.bias, 1, None, None
    if isinstance(layer, _ConvNd) and not isinstance(layer, _ConvTransposeNd):
        effective = getattr(layer, "effective_weight", None)  # of layers that standardise or binarise theirs
        weight = layer.weight if effective is None else effective()
        return weight, layer.bias, layer.groups, tuple(layer.stride), tuple(layer.dilation)
    raise ValueError(
        f"layer={layer!r} must be the convolution or linear layer between the norm that gave the state and "
        f"this one, or its weight, for transition={kind!r}. Where the state already is a prediction of this "
        "norm's input, as behind a residual join, make the norm with transition='identity'."
    )
