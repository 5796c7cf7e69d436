"""Freezes the batch norms of a network, and gives them back."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from functools import partial
from types import MappingProxyType

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from varshift.nn._batch_renorm import _BatchRenorm
from varshift.nn._frozen_batch_norm import FrozenBatchNorm

# Forwards that are batch norm in evaluation and nothing else.
_PURE = (_BatchNorm.forward, nn.SyncBatchNorm.forward, _BatchRenorm.forward)
_TENSORS = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
_DATA_PARALLEL = ("DistributedDataParallel", "FullyShardedDataParallel")
_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_is_full_backward_hook",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


class Freezing:
    """What freezing did to a network, and the way back.

    Attributes:
        layers: The frozen norms by module path, with the class that each had.
        skipped: The batch norms that could not be frozen, and why.

    Example:
        >>> import torch
        >>> from varshift import nn
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
        >>> nn.freeze_batch_norm_(model)
        <Freezing: 1 batch norm frozen>
    """

    def __init__(
        self, model: nn.Module, frozen: set[nn.Module], layers: dict[str, str], skipped: dict[str, str]
    ) -> None:
        self._model, self._frozen = model, frozen
        self.layers: Mapping[str, str] = MappingProxyType(layers)
        self.skipped: Mapping[str, str] = MappingProxyType(skipped)

    def undo(self) -> None:
        """Puts the very modules back that were there before; see `unfreeze_batch_norm_`."""
        _unfreeze(self._model, self._frozen)

    def __repr__(self) -> str:
        text = f"<Freezing: {len(self.layers)} batch norm{'s' * (len(self.layers) != 1)} frozen"
        return text + "".join(f"; '{name}' left alone: {why}" for name, why in self.skipped.items()) + ">"


def freeze_batch_norm_(model: nn.Module, *, trainable: bool = False) -> Freezing:
    """Freezes all batch norms of a network in place: running statistics in training, too, and no updates.

    Torch's batch norms, synchronised ones and `BatchRenorm1d` to `BatchRenorm3d` are each replaced by a
    `FrozenBatchNorm` that shares their tensors and hooks and keeps the training flag; subclasses that inherit
    their forward likewise. What cannot be replaced without losing something stays where it is and is pinned
    to evaluation instead, so that ``train()`` passes it by: a subclass with a forward of its own (it may do
    more than normalise), one with further tensors or children, and the model itself when it is a batch norm.
    Pinned norms keep their parameters, with ``requires_grad`` off. A norm that stands in several places is
    frozen once and stays shared.

    Args:
        model: The network.
        trainable: Whether gamma and beta go on learning; the optimiser then still holds the same parameters.

    Returns:
        The frozen and the skipped norms, with ``undo()``.

    Raises:
        ValueError: If the model is wrapped for data parallelism already and its parameters would vanish.

    Example:
        >>> import torch
        >>> from varshift import nn
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
        >>> handle = nn.freeze_batch_norm_(model)
        >>> model.train()[1]
        FrozenBatchNorm(4, eps=1e-05, affine=True, trainable=False)
        >>> handle.undo()
        >>> model[1]
        BatchNorm2d(4, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True)
    """
    if not trainable:
        for name, module in model.named_modules():
            if type(module).__name__ in _DATA_PARALLEL:
                raise ValueError(
                    f"model: its module {name!r} is a {type(module).__name__}, which waits for gradients of "
                    "all parameters that it has seen. Freeze before wrapping, or pass trainable=True."
                )
    layers: dict[str, str] = {}
    skipped: dict[str, str] = {}
    frozen: set[nn.Module] = set()
    done: dict[int, nn.Module] = {}
    for name, parent, key, norm in list(_places(model)):
        if id(norm) in done:
            if parent is not None:
                parent._modules[key] = done[id(norm)]
            continue
        if not isinstance(norm, _BatchNorm) or _pinned(norm):
            continue
        reason = _obstacle(norm)
        done[id(norm)] = norm
        if reason is not None:
            skipped[name] = reason
            continue
        layers[name] = type(norm).__name__
        if parent is None or not _is_pure(norm):
            _pin(norm, trainable)
        else:
            done[id(norm)] = parent._modules[key] = _frozen(norm, trainable)
        frozen.add(done[id(norm)])
    return Freezing(model, frozen, layers, skipped)


def freeze_batch_norm(model: nn.Module, *, trainable: bool = False) -> nn.Module:
    """A copy of a network with all batch norms frozen; see `freeze_batch_norm_`.

    Args:
        model: The network, which is left alone; a single batch norm will do.
        trainable: Whether gamma and beta go on learning.

    Raises:
        ValueError: If the model is wrapped for data parallelism already and its parameters would vanish.

    Example:
        >>> import torch
        >>> from varshift import nn
        >>> nn.freeze_batch_norm(torch.nn.BatchNorm1d(4))
        FrozenBatchNorm(4, eps=1e-05, affine=True, trainable=False)
    """
    holder = nn.ModuleList([copy.deepcopy(model)])  # gives the model itself a parent
    freeze_batch_norm_(holder, trainable=trainable)
    return holder[0]


def unfreeze_batch_norm_(model: nn.Module) -> Mapping[str, str]:
    """Gives the norms back, in place, that `freeze_batch_norm_` or `freeze_batch_norm` froze.

    The very modules return that were there before, with all their settings. What happened meanwhile is kept:
    values that were loaded or trained, the device and type that the network was moved to, its training flag,
    hooks. If nothing happened, everything is as before, bit for bit. Layers that were built as
    `FrozenBatchNorm` have no former self and stay.

    Args:
        model: The network, or a copy of it.

    Returns:
        The restored norms by module path, with the class that each has again.

    Example:
        >>> import torch
        >>> from varshift import nn
        >>> model = nn.freeze_batch_norm(torch.nn.Sequential(torch.nn.BatchNorm1d(4)))
        >>> dict(nn.unfreeze_batch_norm_(model))
        {'0': 'BatchNorm1d'}
    """
    return MappingProxyType(_unfreeze(model, None))


def unfreeze_batch_norm(model: nn.Module) -> nn.Module:
    """A copy of a network with its frozen norms given back; see `unfreeze_batch_norm_`.

    Example:
        >>> import torch
        >>> from varshift import nn
        >>> nn.unfreeze_batch_norm(nn.freeze_batch_norm(torch.nn.BatchNorm1d(4)))
        BatchNorm1d(4, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True)
    """
    holder = nn.ModuleList([copy.deepcopy(model)])
    _unfreeze(holder, None)
    return holder[0]


def _places(model: nn.Module) -> Iterator[tuple[str, nn.Module | None, str, nn.Module]]:
    """All places where a module stands: its path, its parent, its key there, and itself."""
    yield "", None, "", model
    for path, parent in model.named_modules():
        for key, child in parent._modules.items():
            if child is not None:
                yield f"{path}.{key}" if path else key, parent, key, child


def _obstacle(norm: _BatchNorm) -> str | None:
    """Why a batch norm cannot be frozen."""
    if norm.running_mean is None or norm.running_var is None:
        return "it has no running statistics"
    if is_lazy(norm.running_mean):
        return "it has not seen an input yet"
    return None


def _is_pure(norm: _BatchNorm) -> bool:
    """Whether a norm is a batch norm and nothing else, so that another module can stand for it."""
    return (
        type(norm).forward in _PURE
        and "forward" not in norm.__dict__
        and not norm._modules
        and {*norm._parameters, *norm._buffers} <= _TENSORS
    )


def _frozen(norm: _BatchNorm, trainable: bool) -> FrozenBatchNorm:
    frozen = FrozenBatchNorm.of(norm, trainable)
    for name in _HOOKS:  # shared, so that the handles of the hooks work on
        if name in norm.__dict__:
            frozen.__dict__[name] = norm.__dict__[name]
    frozen.__dict__["_former"] = (norm,)  # in a tuple, out of sight of named_modules()
    return frozen


def _restored(frozen: FrozenBatchNorm) -> _BatchNorm | None:
    """The norm that a frozen one stands for, with what happened to the frozen one meanwhile."""
    (norm,) = frozen.__dict__.get("_former", (None,))
    if norm is None:
        return None
    for name in _HOOKS:
        if name in frozen.__dict__:
            norm.__dict__[name] = frozen.__dict__[name]
    norm.training = frozen.training
    for name in _TENSORS:
        now, former = getattr(frozen, name), getattr(norm, name)
        if former is None or now is None:
            continue
        if isinstance(former, nn.Parameter):
            if now is not former:
                former.data = now.detach()
        else:
            norm._buffers[name] = now
    return norm


def _own_parameters(norm: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters of a norm itself and not of the layers inside it; parametrized ones lie a level deeper."""
    return {
        name: parameter
        for name, parameter in norm.named_parameters()
        if "." not in name or name.startswith("parametrizations.")
    }


def _pin(norm: _BatchNorm, trainable: bool) -> None:
    own = _own_parameters(norm)
    norm.__dict__["_before_pin"] = (norm.training, {name: value.requires_grad for name, value in own.items()})
    if not trainable:
        for parameter in own.values():
            parameter.requires_grad_(False)
    norm.training = False
    norm.__dict__["train"] = partial(_train_but_itself, norm)


def _train_but_itself(norm: nn.Module, mode: bool = True) -> nn.Module:
    """What ``train`` does on a pinned norm: children follow, the norm stays, and remembers what was asked."""
    norm.__dict__["_before_pin"] = (mode, norm.__dict__["_before_pin"][1])
    for child in norm.children():
        child.train(mode)
    return norm


def _pinned(norm: nn.Module) -> bool:
    return "_before_pin" in norm.__dict__


def _unpin(norm: nn.Module) -> None:
    mode, flags = norm.__dict__.pop("_before_pin")
    del norm.__dict__["train"]
    norm.training = mode
    for name, parameter in _own_parameters(norm).items():
        parameter.requires_grad_(flags.get(name, parameter.requires_grad))


def _unfreeze(model: nn.Module, chosen: set[nn.Module] | None) -> dict[str, str]:
    """Gives the chosen frozen norms back, all when None; returns their paths and classes."""
    restored: dict[str, str] = {}
    done: dict[int, nn.Module] = {}
    with torch.no_grad():
        for name, parent, key, module in list(_places(model)):
            if id(module) in done:
                if parent is not None:
                    parent._modules[key] = done[id(module)]
                continue
            if chosen is not None and module not in chosen:
                continue
            if _pinned(module):
                _unpin(module)
                former: nn.Module | None = module
            else:
                former = _restored(module) if isinstance(module, FrozenBatchNorm) else None
            if former is not None:
                done[id(module)] = former
                if parent is not None:
                    parent._modules[key] = former
                restored[name] = type(former).__name__
    return restored
