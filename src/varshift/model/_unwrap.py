"""The user's own module inside wrappers, one name per module, and copies that leave the original alone."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside `torch.compile` and data-parallel wrappers, however deeply nested."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module) and _is_parallel(model):
            inner = getattr(model, "module", None)
        if not isinstance(inner, nn.Module) or inner is model:
            return model
        model = inner


def _is_parallel(model: nn.Module) -> bool:
    parallel: tuple[type, ...] = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    if isinstance(model, parallel):
        return True
    # FullyShardedDataParallel and third-party wrappers follow the same convention but are imported lazily.
    names = {base.__name__ for base in type(model).__mro__}
    return bool(names & {"FullyShardedDataParallel", "DistributedDataParallel", "DeepSpeedEngine"})


def canonical_names(model: nn.Module) -> dict[str, str]:
    """Maps every path of every module of the unwrapped model to the first path of the same module."""
    first: dict[int, str] = {}
    names: dict[str, str] = {}
    for path, module in unwrap(model).named_modules(remove_duplicate=False):
        names[path] = first.setdefault(id(module), path)
    return names


def canonical_tensor(names: dict[str, str], path: str) -> str:
    """Canonical name of a parameter or buffer given under any alias of its module."""
    owner, _, leaf = path.rpartition(".")
    owner = names.get(owner, owner)
    return f"{owner}.{leaf}" if owner else leaf


def copy_model(model: nn.Module, *, share: bool = False) -> nn.Module:
    """A deep copy; tensors that torch refuses to copy (results of autograd) are detached in it.

    Args:
        model: The module.
        share: Let parameters and buffers share their memory with the original, which saves copying it. The
            copy must then not be run on real tensors.
    """
    memo: dict[int, Any] = {}
    if share:
        for parameter in model.parameters():
            if type(parameter) is nn.Parameter:
                memo[id(parameter)] = nn.Parameter(parameter.detach(), parameter.requires_grad)
        for buffer in model.buffers():
            if type(buffer) is Tensor:
                memo[id(buffer)] = buffer.detach()
    for module in model.modules():
        for value in vars(module).values():
            for tensor in _tensors(value):
                if not tensor.is_leaf and id(tensor) not in memo:
                    memo[id(tensor)] = tensor.detach().clone()
    with torch.no_grad():
        return copy.deepcopy(model, memo)


def switches_quietly(model: nn.Module) -> bool:
    """Whether `train()` and `eval()` set flags only (a module may merge weights there, as LoRA layers do)."""
    return all(
        type(module).train is nn.Module.train and type(module).eval is nn.Module.eval
        for module in model.modules()
    )


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
