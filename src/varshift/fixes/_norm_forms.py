"""What a norm module computes, read from the module, so that another one can take its place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from varshift import nn as layers
from varshift.fixes._norm_places import NormPlace
from varshift.fixes._trial import output_in_evaluation
from varshift.model import Norm

_BATCH = (_BatchNorm.forward, nn.SyncBatchNorm.forward, layers.BatchRenorm2d.forward)
_TENSORS = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
_CLOSE = 1e-4  # of the output's size: a norm computed in another order differs by far less


@dataclass(frozen=True, eq=False)
class NormForm:
    """The parts of ``weight * (x - mean) / sqrt(var + eps) + bias``; the tensors are the norm's own.

    Attributes:
        channels: Number of channels.
        dims: Number of dimensions after the channels: 0 for features, 2 for images; None where not known.
        weight: The factors; None without.
        bias: The terms; None without.
        mean: The running mean; None without running statistics.
        var: The running variance, likewise.
        counter: The number of batches in them; None where it is not counted.
        eps: What is added to the variance.
        momentum: Weight of a batch in the statistics; None for a cumulative average.
        device: Device of its numbers.
        dtype: Their type.
    """

    channels: int
    dims: int | None
    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor | None
    var: Tensor | None
    counter: Tensor | None
    eps: float
    momentum: float | None
    device: torch.device | None
    dtype: torch.dtype

    @property
    def spread(self) -> int | None:
        """The 1, 2 or 3 in the name of a torch layer for its inputs; None where it is not known."""
        return None if self.dims is None else max(self.dims, 1)


def read_norm(place: NormPlace) -> NormForm | None:
    """What a norm's module computes; None where it is more than a norm, or another one.

    Torch's own norms, their subclasses that inherit the forward, and varshift's are read. Of any other module
    it is measured, on a copy, whether in evaluation mode it is a batch norm with the statistics that the
    census knows and with parameters of its own.
    """
    module = place.module
    if "forward" in vars(module) or (place.norm is not None and "#" in place.norm.name):
        return None
    if isinstance(module, layers.FrozenBatchNorm):
        return _form(place, module.weight, module.bias)
    if isinstance(module, _NormBase):
        own = type(module).forward
        known = own is _InstanceNorm.forward if isinstance(module, _InstanceNorm) else own in _BATCH
        tensors = {*module._parameters, *module._buffers}
        if known and not module._modules and tensors <= _TENSORS:
            return _form(place, module.weight, module.bias)
    return _measured(place)


def read_followed(place: NormPlace, names: Sequence[str]) -> NormForm | None:
    """What a batch norm computes before its module passes the output through some children.

    None where, in evaluation mode on a copy, the module's output is not that.
    """
    module, norm, shape = place.module, place.norm, place.shape
    if not isinstance(module, _BatchNorm) or norm is None or not shape or not norm.readable:
        return None
    if {*module._parameters, *module._buffers} - _TENSORS or "forward" in vars(module):
        return None
    form = _form(place, module.weight, module.bias)
    inputs = _inputs(norm.mean.detach().double(), norm.var.detach().double(), shape).to(norm.mean.dtype)

    def is_followed(twin: nn.Module, outputs: Any) -> bool:
        expected = F.batch_norm(inputs, norm.mean, norm.var, form.weight, form.bias, eps=form.eps)
        for name in names:
            expected = twin.get_submodule(name)(expected)
        return isinstance(outputs, Tensor) and _close(outputs, expected)

    return form if output_in_evaluation(module, inputs, is_followed) else None


def _inputs(mean: Tensor, var: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Random inputs of the size that a norm expects."""
    noise = torch.randn((4, *shape[1:]), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    view = (1, -1, *[1] * (len(shape) - 2))
    return mean.view(view) + noise.to(mean.device) * (var.view(view) + 1e-5).sqrt()


def _close(outputs: Tensor, expected: Tensor) -> bool:
    if outputs.shape != expected.shape:
        return False
    difference = (expected.double() - outputs.double()).abs().max()
    return bool(difference <= _CLOSE * max(1.0, float(outputs.abs().max())))


def _form(place: NormPlace, weight: Tensor | None, bias: Tensor | None, eps: float | None = None) -> NormForm:
    module, norm = place.module, place.norm
    shape = place.shape
    dims = len(shape) - 2 if shape else _dims_of_class(module)
    mean, var = (norm.mean, norm.var) if norm is not None else (None, None)
    counter = getattr(module, "num_batches_tracked", None)
    values = next((t for t in (weight, bias, mean) if t is not None), None)
    momentum = getattr(module, "momentum", None) if norm is None or norm.kind != "custom" else norm.momentum
    return NormForm(
        place.channels,
        dims,
        weight,
        bias,
        mean,
        var,
        counter if isinstance(counter, Tensor) else None,
        float(getattr(module, "eps", 1e-5)) if eps is None else eps,
        momentum,
        None if values is None else values.device,
        torch.get_default_dtype() if values is None else values.dtype,
    )


def _dims_of_class(module: nn.Module) -> int | None:
    for dims, classes in ((2, (nn.BatchNorm2d, nn.InstanceNorm2d)), (3, (nn.BatchNorm3d, nn.InstanceNorm3d))):
        if isinstance(module, classes):
            return dims
    return 1 if isinstance(module, nn.InstanceNorm1d) else None


def _measured(place: NormPlace) -> NormForm | None:
    """Measures a module in evaluation mode: inputs in, and the formula's output is what has to come out."""
    norm, shape = place.norm, place.shape
    if norm is None or not shape or norm.rows != 1 or norm.states.unsupported is not None:
        return None
    if not norm.readable or not norm.states.own_input or norm.per_sample or shape[1:2] != (norm.channels,):
        return None
    mean, var = norm.mean.detach().double(), norm.var.detach().double()
    if norm.mean_state is None or not bool(torch.isfinite(var).all()) or bool((var < 0).any()):
        return None
    inputs = _inputs(mean, var, shape)
    outputs = output_in_evaluation(place.module, inputs.to(norm.mean.dtype))
    if not isinstance(outputs, Tensor) or outputs.shape != inputs.shape:
        return None
    return next(_fitting(place, norm, inputs, outputs.double()), None)


def _fitting(place: NormPlace, norm: Norm, inputs: Tensor, outputs: Tensor) -> Iterator[NormForm]:
    """The forms whose output is that of the module, from the tensors that it owns; none may be left over."""
    taken = {id(state.tensor) for state in norm.own_states}
    parameters = {id(t) for t in place.module.parameters()} - taken
    own = [*place.module.parameters(recurse=False), *place.module.buffers(recurse=False)]
    own = [t for t in own if id(t) not in taken and t.shape == (norm.channels,) and t.is_floating_point()]
    mean, var = norm.mean.detach().double(), norm.var.detach().double()
    eps = float(getattr(place.module, "eps", 0.0) or norm.states.eps or 1e-5)
    for weight in (*own, None):
        for bias in (*(t for t in own if t is not weight), None):
            if parameters - {id(weight), id(bias)}:
                continue
            expected = F.batch_norm(
                inputs,
                mean,
                var,
                None if weight is None else weight.detach().double(),
                None if bias is None else bias.detach().double(),
                eps=eps,
            )
            if _close(outputs, expected):
                yield _form(place, weight, bias, eps)
