"""Operators of a Flow as functions: found by name, called on tensors, asked about their arguments."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from varshift.flow import Node

# Written in place in most networks; their twins take the same arguments.
_PLAIN = frozenset(
    ["relu", "relu6", "hardtanh", "hardswish", "hardsigmoid", "silu", "mish", "elu", "leaky_relu", "sigmoid"]
) | frozenset(["add", "sub", "mul", "div"])
MATRICES = ("mm", "matmul", "addmm")
# Each reads one signal and weights.
WEIGHTS = (
    "linear",
    "conv1d",
    "conv2d",
    "conv3d",
    "convolution",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    *MATRICES,
)
_WEIGHT_KEYS = ("weight", "mat2", "other")


class UnknownOperator(Exception):  # noqa: N818 - carries a name
    """An operation that cannot be run from its name."""


class _Argument(NamedTuple):
    name: str
    written: bool
    optional: bool
    default: Any


def function_of(node: Node) -> Callable[..., Any]:
    """The function of a call node.

    Raises:
        UnknownOperator: If there is none of this name.
    """
    return _function(node.op)


@cache
def _function(op: str) -> Callable[..., Any]:
    if op == "getitem" or op.endswith(".getitem"):
        return operator.getitem
    found: Any = torch.ops
    try:
        for part in op.split("."):
            found = getattr(found, part)
    except (AttributeError, RuntimeError):
        raise UnknownOperator(op) from None
    if not callable(found):
        raise UnknownOperator(op)
    return found


@cache
def _arguments(op: str) -> tuple[_Argument, ...] | None:
    """What an operation takes, in order; None for one without a schema."""
    schema = getattr(_function(op), "_schema", None)
    if schema is None:
        return None
    return tuple(
        _Argument(
            argument.name,
            argument.alias_info is not None and argument.alias_info.is_write,
            argument.has_default_value(),
            argument.default_value,
        )
        for argument in schema.arguments
    )


def base_name(node: Node) -> str:
    """Name of an operator without namespace, overload and the mark of in-place operators."""
    parts = node.op.split(".")
    name = parts[1] if len(parts) > 1 else parts[0]
    return name.rstrip("_") if not name.startswith("_") else name


def writes_in_place(node: Node) -> bool:
    """Whether it overwrites its first argument."""
    parts = node.op.split(".")
    return len(parts) > 1 and parts[1].endswith("_") and not parts[1].endswith("__")


def bound(node: Node) -> dict[str, Any]:
    """The arguments of a call by name and in order, defaults included."""
    arguments = _arguments(node.op)
    if arguments is None:
        return {str(position): value for position, value in enumerate(node.args)} | dict(node.kwargs)
    named: dict[str, Any] = {}
    for position, argument in enumerate(arguments):
        if position < len(node.args):
            named[argument.name] = node.args[position]
        elif argument.name in node.kwargs:
            named[argument.name] = node.kwargs[argument.name]
        elif argument.optional:
            named[argument.name] = argument.default
    return named


def weight_key(named: Mapping[str, Any]) -> str | None:
    """Under which name the operands of a call hold its weights, if they do."""
    return next((key for key in _WEIGHT_KEYS if isinstance(named.get(key), Tensor)), None)


def run(node: Node, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Runs a call on tensors without changing any of them."""
    function, arguments = function_of(node), _arguments(node.op) or ()
    if any(argument.written for argument in arguments):
        twin = _without_writing(node)
        if twin is not None:
            return twin(*args, **kwargs)
        copied = list(args)
        for position, (value, argument) in enumerate(zip(args, arguments, strict=False)):
            if argument.written and isinstance(value, Tensor):
                copied[position] = value.clone()
        args = tuple(copied)
    return function(*args, **kwargs)


def _without_writing(node: Node) -> Callable[..., Any] | None:
    """The same elementwise function, handing back a new tensor; None where there is none."""
    parts = node.op.split(".")
    if not writes_in_place(node) or parts[0] != "aten" or base_name(node) not in _PLAIN:
        return None
    packet = getattr(torch.ops.aten, base_name(node), None)
    return getattr(packet, parts[2] if len(parts) > 2 else "default", None)
