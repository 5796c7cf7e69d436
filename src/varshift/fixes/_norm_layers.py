"""The layers that can take the place of a norm, built with what they keep of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from varshift import nn as layers
from varshift.fixes._norm_forms import NormForm
from varshift.fixes._surgery import Refused
from varshift.rules import Safety

NormKind = Literal[
    "group_norm",
    "layer_norm",
    "instance_norm",
    "filter_response_norm",
    "batch_renorm",
    "frozen",
    "sync",
]

_Norm = TypeVar("_Norm", bound=_NormBase)

_FEWEST_VALUES = 16  # in a group of one sample: fewer leave little of the signal


@dataclass(frozen=True, slots=True)
class LayerSettings:
    """What can be chosen about a layer that takes a norm's place.

    Attributes:
        groups: For ``"group_norm"``: the most groups; see `group_count`.
        positions: Values of one channel of one sample, as far as they are known.
        tlu: For ``"filter_response_norm"``: whether a learned threshold replaces the ReLU after it.
        trainable: For ``"frozen"``: whether the affine parameters go on learning.
        scale: For ``"batch_renorm"``: the largest factor that corrects a batch.
        shift: For ``"batch_renorm"``: the largest shift in standard deviations.
    """

    groups: int = 32
    positions: int | None = None
    tlu: bool = False
    trainable: bool = True
    scale: float = 3.0
    shift: float = 5.0


@dataclass(frozen=True, slots=True)
class LayerKind:
    """One kind of layer.

    Attributes:
        build: Makes it.
        safety: ``"safe"`` where evaluation computes what it did.
        statistics: Whether it has running statistics, which it takes over.
    """

    build: Callable[[NormForm, LayerSettings], nn.Module]
    safety: Safety
    statistics: bool


def group_count(channels: int, most: int = 32, positions: int | None = None) -> int:
    """The number of groups: the largest divisor of the channels that is at most `most`.

    A group holds two channels and 16 values of one sample at least, as far as the channels allow it: a single
    channel per group would make an instance norm of it, and a single value is normalised to nothing.

    Args:
        channels: Number of channels.
        most: The most groups.
        positions: Values of one channel of one sample; None where they are not known.

    Example:
        >>> group_count(64), group_count(48), group_count(16, positions=1)
        (32, 24, 1)
    """
    size = max(2, -(-_FEWEST_VALUES // (positions or _FEWEST_VALUES)))
    divisors = (count for count in range(min(most, channels), 1, -1) if channels % count == 0)
    return next((count for count in divisors if channels // count >= size), 1)


def _with_affine(layer: nn.Module, form: NormForm) -> nn.Module:
    """Gives a layer the very parameters of the norm, so that an optimiser's state goes on."""
    for name, value in (("weight", form.weight), ("bias", form.bias)):
        if value is not None and not isinstance(value, nn.Parameter):
            value = nn.Parameter(value.detach().clone(), requires_grad=False)
        layer.register_parameter(name, value)
    if hasattr(layer, "affine"):
        layer.affine = form.weight is not None or form.bias is not None  # type: ignore[assignment]
    return layer


def _with_statistics(layer: _Norm, form: NormForm) -> _Norm:
    """Gives a layer the norm's running statistics, the very tensors."""
    for name, value in (("running_mean", form.mean), ("running_var", form.var)):
        if value is not None:
            setattr(layer, name, value.detach() if isinstance(value, nn.Parameter) else value)
    if form.counter is not None:
        layer.num_batches_tracked = form.counter
    return layer


def _require_statistics(form: NormForm, kind: str) -> tuple[Tensor, Tensor]:
    if form.mean is None or form.var is None:
        raise Refused(f"there are no running statistics that a {kind} norm could use: track them first.")
    return form.mean, form.var


def _require_spread(form: NormForm) -> int:
    if form.spread is None:
        raise Refused("the shape of the norm's input is not known: pass a loader or example inputs.")
    return form.spread


def _group(form: NormForm, settings: LayerSettings) -> nn.Module:
    groups = group_count(form.channels, settings.groups, settings.positions)
    if form.channels * (settings.positions or 2) < 2:
        raise Refused("the norm sees a single value per sample, which no group norm can normalise.")
    return _with_affine(nn.GroupNorm(groups, form.channels, form.eps, affine=False), form)


def _layer(form: NormForm, settings: LayerSettings) -> nn.Module:
    return _with_affine(nn.GroupNorm(1, form.channels, form.eps, affine=False), form)


def _instance(form: NormForm, settings: LayerSettings) -> nn.Module:
    if form.dims == 0 or settings.positions == 1:
        raise Refused(
            "the norm sees one value per channel and sample, and an instance norm would leave nothing of it: "
            "take to='layer_norm'."
        )
    classes = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
    return _with_affine(classes[_require_spread(form)](form.channels, form.eps), form)


def _filter_response(form: NormForm, settings: LayerSettings) -> nn.Module:
    plain = {1: layers.FilterResponseNorm1d, 2: layers.FilterResponseNorm2d, 3: layers.FilterResponseNorm3d}
    thresholded = {
        1: layers.FilterResponseNormTLU1d,
        2: layers.FilterResponseNormTLU2d,
        3: layers.FilterResponseNormTLU3d,
    }
    single = form.dims == 0 or settings.positions == 1
    layer = (thresholded if settings.tlu else plain)[_require_spread(form)](
        form.channels, learn_eps=single, device=form.device, dtype=form.dtype
    )
    return _with_affine(layer, form)


def _renorm(form: NormForm, settings: LayerSettings) -> nn.Module:
    mean, _ = _require_statistics(form, "batch renorm")
    classes = {1: layers.BatchRenorm1d, 2: layers.BatchRenorm2d, 3: layers.BatchRenorm3d}
    layer = classes[_require_spread(form)](
        form.channels,
        form.eps,
        form.momentum,
        affine=False,
        device=form.device,
        dtype=mean.dtype,
        clipping=layers.RenormClipping.fixed(settings.scale, settings.shift),
    )
    _with_affine(layer, form)
    return _with_statistics(layer, form)


def _frozen(form: NormForm, settings: LayerSettings) -> nn.Module:
    _require_statistics(form, "frozen")
    pattern = nn.BatchNorm1d(form.channels, form.eps, form.momentum, affine=False, device=form.device)
    _with_affine(pattern, form)
    return layers.FrozenBatchNorm.of(_with_statistics(pattern, form), trainable=settings.trainable)


def _sync(form: NormForm, settings: LayerSettings) -> nn.Module:
    tracks = form.mean is not None
    layer = nn.SyncBatchNorm(form.channels, form.eps, form.momentum, False, tracks, device=form.device)
    _with_affine(layer, form)
    return _with_statistics(layer, form)


LAYERS: dict[str, LayerKind] = {
    "group_norm": LayerKind(_group, "unsafe", False),
    "layer_norm": LayerKind(_layer, "unsafe", False),
    "instance_norm": LayerKind(_instance, "unsafe", False),
    "filter_response_norm": LayerKind(_filter_response, "unsafe", False),
    "batch_renorm": LayerKind(_renorm, "safe", True),
    "frozen": LayerKind(_frozen, "safe", True),
    "sync": LayerKind(_sync, "safe", True),
}
