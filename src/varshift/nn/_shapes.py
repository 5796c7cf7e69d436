"""Whether an input fits a layer, said in the same words everywhere."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


def require_axes(x: Tensor, axes: Sequence[int], channels: int) -> None:
    """Raises ValueError unless an input has one of these numbers of axes and so many channels on axis 1."""
    if x.dim() not in axes or x.shape[1] != channels:
        wanted = " or ".join(str(number) for number in axes)
        raise ValueError(
            f"x of shape {tuple(x.shape)} must have {wanted} axes and {channels} channels on axis 1."
        )


def require_features(layer: nn.Module, input: Tensor, num_features: int) -> None:
    """Raises ValueError unless an input has as many channels as its layer was built for."""
    if input.shape[1] != num_features:
        raise ValueError(
            f"The input has {input.shape[1]} channels (its axis 1), but {type(layer).__name__} was built "
            f"with num_features={num_features}."
        )
