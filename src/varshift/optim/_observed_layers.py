"""Layers whose inputs are watched: the hook that takes their moments, and their gradients."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from varshift.optim._filters import is_weight_layer
from varshift.optim._input_statistics import Rows, batch_moments
from varshift.optim._moment_bank import Entry, MomentBank
from varshift.optim._selection import Exclusion


class ObservedLayer:
    """A layer with the place of its moments.

    Attributes:
        module: The layer.
        entry: What a bank must know of it.
        bank: Where its moments are.
        index: Its position there.
    """

    bank: MomentBank
    index: int

    def __init__(self, module: Any) -> None:
        self.module = module
        groups = getattr(module, "groups", 1)
        shape = module.weight.shape
        self.entry = Entry(shape[1] * groups, groups, math.prod(shape[1:]))

    @property
    def mean(self) -> Tensor:
        """The remembered mean of its input."""
        return self.bank.mean[self.bank.place(self.index)]

    @property
    def variance(self) -> Tensor:
        """The remembered variance of its input."""
        return self.bank.variance[self.bank.place(self.index)]


def place(layers: Iterable[ObservedLayer]) -> list[MomentBank]:
    """Puts the moments of layers where the layers are: a bank per device, with what was known before."""
    layers = list(layers)
    banks = []
    for device in dict.fromkeys(layer.module.weight.device for layer in layers):
        here = [layer for layer in layers if layer.module.weight.device == device]
        bank = MomentBank([layer.entry for layer in here], device)
        for index, layer in enumerate(here):
            if hasattr(layer, "bank"):
                bank.copy_from(index, layer.bank, layer.index)
            layer.bank, layer.index = bank, index
        banks.append(bank)
    return banks


class Observer:
    """The hook on a layer; a copy of the model does not keep it, for it has nobody to report to."""

    def __init__(self, layer: ObservedLayer, rule: Rows) -> None:
        self.layer = layer
        self.rule: Rows = rule

    def __call__(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        if not (module.training and torch.is_grad_enabled() and out.requires_grad):
            return
        trained = module.weight.requires_grad or (module.bias is not None and module.bias.requires_grad)
        if not trained:
            return
        x = args[0] if args else kwargs["input"]
        layer = self.layer
        with torch.no_grad():
            batch = batch_moments(module, x, out, self.rule)
            if batch is None:
                return
            if torch.compiler.is_compiling():
                layer.bank.add(layer.index, batch)
                return
            layer.bank.to(module.weight.device)
        reported = False

        def report(grad: Tensor) -> None:
            nonlocal reported
            if not reported:  # a graph may be walked several times
                reported = True
                with torch.no_grad():
                    layer.bank.add(layer.index, batch)

        out.register_hook(report)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return _ignore

    def __reduce__(self) -> Any:
        return _nothing, ()


def _ignore(*args: Any) -> None:
    """What is left of an observer in a copy of its model."""


def _nothing() -> Any:
    return _ignore


def local_grad(layer: ObservedLayer, parameter: Any) -> Tensor | None:
    """A gradient, or this process's rows of it."""
    grad = None if parameter is None else parameter.grad
    if grad is None or not hasattr(grad, "device_mesh"):
        return grad
    by_rows = all(placement.is_replicate() or placement.is_shard(0) for placement in grad.placements)
    if not by_rows or layer.entry.groups > 1:
        raise ValueError(
            f"a {type(layer.module).__name__} of {layer.entry.groups} groups is spread over processes as "
            f"{grad.placements}: only rows of layers without groups may be. Exclude it."
        )
    return grad.to_local()


def observed_layers(model: nn.Module, exclusion: Exclusion) -> dict[str, ObservedLayer]:
    """The layers by name, each module once."""
    found: dict[str, ObservedLayer] = {}
    names = []
    for name, module in model.named_modules():
        if isinstance(module, _ConvTransposeNd) or not is_weight_layer(module):
            continue
        names.append(name)
        if not exclusion(name, module):
            found[name] = ObservedLayer(module)
    exclusion.require_all_used(names)
    if not found:
        raise ValueError(
            f"model={type(model).__name__} has no linear layer or convolution that is left to precondition."
        )
    owners: dict[int, str] = {}
    layers = {id(layer.module): name for name, layer in found.items()}
    for name, module in model.named_modules():
        for key, parameter in module._parameters.items():
            if parameter is None:
                continue
            other = owners.setdefault(id(parameter), name)
            if other != name and (id(module) in layers or other in found):
                raise ValueError(
                    f"the {key} of {name!r} is that of {other!r} too: gradients of two inputs cannot be told "
                    "apart. Exclude both layers, or use one module twice."
                )
    return found
