"""Which modules can run parts of themselves again in the backward pass, told from their code."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator
from typing import Any

import torch.utils.checkpoint as checkpointing
from torch import nn

_DEPTH = 3  # functions that call one another on the way to activation checkpointing
_FUNCTIONS = (checkpointing.checkpoint, checkpointing.checkpoint_sequential)


def can_recompute(module: nn.Module) -> bool:
    """Whether a method of a module, or a function that it holds, refers to `torch.utils.checkpoint`."""
    return _class_can(type(module)) or any(_leads(value, _DEPTH) for value in vars(module).values())


@functools.cache
def _class_can(cls: type) -> bool:
    methods = (
        value
        for base in cls.__mro__
        if not base.__module__.startswith("torch.nn.") and base is not object
        for value in vars(base).values()
        if isinstance(value, types.FunctionType)
    )
    return any(_leads(method, _DEPTH) for method in methods)


def _leads(value: Any, depth: int) -> bool:
    """Whether a value is one of the functions of `torch.utils.checkpoint`, or a function that calls one."""
    if isinstance(value, functools.partial):
        value = value.func
    value = getattr(value, "__func__", value)
    if any(value is function for function in _FUNCTIONS):
        return True
    if not isinstance(value, types.FunctionType) or depth == 0 or value.__module__.startswith("torch."):
        return False
    for code in _codes(value.__code__):
        for name in code.co_names:
            found = value.__globals__.get(name)
            if found is checkpointing or (found is not value and _leads(found, depth - 1)):
                return True
        # As `torch.utils.checkpoint.checkpoint(...)` is spelled.
        if {"torch", "utils", "checkpoint"} <= set(code.co_names):
            return True
    return False


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)
