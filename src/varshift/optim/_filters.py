"""The filters of a weight: which elements make one output unit, and which weights there are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.parametrize import is_parametrized

Granularity = Literal["filter", "layer"]


@dataclass(frozen=True)
class ScaleInvariantWeight:
    """A weight layer whose output a normalisation rids of its scale.

    Attributes:
        name: Path of the layer in its model, empty where it is not known.
        module: The layer: a linear layer or a convolution; or a bare parameter, whose units lie along axis 0.
        norms: The batch norms that read its output, each with the position of the output's first channel
            among its own (other than 0 behind a concatenation). Their running statistics follow a rescaling.

    Example:
        >>> layer, norm = nn.Linear(4, 3, bias=False), nn.BatchNorm1d(3)
        >>> ScaleInvariantWeight("head", layer, ((norm, 0),)).units
        3
    """

    name: str
    module: nn.Module | Tensor
    norms: tuple[tuple[nn.Module, int], ...] = field(default=())

    @property
    def weight(self) -> Tensor:
        """The weight as it is now: moving a module to another device may put a new one in place."""
        return self.module if isinstance(self.module, Tensor) else self.module.weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        """The layer's bias."""
        return None if isinstance(self.module, Tensor) else self.module.bias  # type: ignore[return-value]

    @property
    def units(self) -> int:
        """The number of output units."""
        if isinstance(self.module, _ConvNd):
            return self.module.out_channels
        return self.weight.shape[0]

    def by_filter(self, tensor: Tensor, per: Granularity) -> tuple[Tensor, tuple[int, ...]]:
        """A view of a tensor of the weight's shape, and the axes of it that make up one filter."""
        axes = range(tensor.dim())
        if per == "layer":
            return tensor, tuple(axes)
        if not isinstance(self.module, _ConvTransposeNd):
            return tensor, tuple(axes)[1:]
        # (inputs, outputs per group, ...): the outputs of a group read the inputs of that group alone.
        tensor = tensor.unflatten(0, (self.module.groups, -1))
        return tensor, (1, *range(3, tensor.dim()))

    def norm(self, per: Granularity) -> Tensor:
        """The Euclidean norm of each filter, in a shape that broadcasts against `by_filter`."""
        view, axes = self.by_filter(self.weight.detach(), per)
        wide = torch.float32 if view.dtype in (torch.float16, torch.bfloat16) else None
        return torch.linalg.vector_norm(view, dim=axes, keepdim=True, dtype=wide)


def is_weight_layer(module: Any) -> TypeGuard[nn.Linear | _ConvNd]:
    """Whether a module is a linear layer or convolution whose weight is a plain parameter."""
    return (
        isinstance(module, (nn.Linear, _ConvNd))
        and isinstance(module._parameters.get("weight"), nn.Parameter)
        and not isinstance(module.weight, nn.UninitializedParameter)
        and not is_parametrized(module)
    )


def as_weight(item: Any) -> ScaleInvariantWeight:
    """Reads what a user gives for a weight: one of ours, a layer, a pair of layer and norm, a parameter.

    Raises:
        ValueError: If it is anything else.
    """
    if isinstance(item, ScaleInvariantWeight):
        return item
    if isinstance(item, tuple) and len(item) == 2 and isinstance(item[1], nn.Module):
        return _with_norm(as_weight(item[0]), item[1])
    if isinstance(item, Tensor) and item.dim() > 1:
        return ScaleInvariantWeight("", item)
    if is_weight_layer(item):
        return ScaleInvariantWeight("", item)
    if isinstance(item, nn.Module) and any(is_weight_layer(module) for module in item.modules()):
        raise ValueError(
            f"weights has a {type(item).__name__}, a network of several layers, and which of them are scale "
            "invariant cannot be seen. Give find_scale_invariant(model, inputs), or the layers themselves."
        )
    shape = f" of shape {tuple(item.shape)}" if isinstance(item, Tensor) else ""
    raise ValueError(
        f"weights has a {type(item).__name__}{shape}: each must be a linear layer or convolution (its weight "
        "a plain parameter), a pair of one and its batch norm, or a parameter of two or more axes."
    )


def _with_norm(weight: ScaleInvariantWeight, norm: nn.Module) -> ScaleInvariantWeight:
    channels = getattr(norm, "num_features", None)
    if channels != weight.units:
        raise ValueError(
            f"weights has a pair of {weight.units} output units and a {type(norm).__name__} of {channels} "
            "channels: they must be as many."
        )
    return ScaleInvariantWeight(weight.name, weight.module, ((norm, 0),))
