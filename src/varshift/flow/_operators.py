"""The operations of a Flow as functions: found by overload, called on tensors, asked for their arguments."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from varshift.flow._types import Node

# Written in place in most networks; their twins take the same arguments.
_PLAIN = frozenset(
    ["relu", "relu6", "hardtanh", "hardswish", "hardsigmoid", "silu", "mish", "elu", "leaky_relu", "sigmoid"]
) | frozenset(["add", "sub", "mul", "div"])


class UnknownOperator(Exception):  # noqa: N818 - carries a name
    """An operation that cannot be run from its name."""


class _Argument(NamedTuple):
    name: str
    written: bool
    optional: bool
    default: Any


def function_of(node: Node) -> Callable[..., Any]:
    """The function of a call.

    Raises:
        UnknownOperator: If there is none of this name.
    """
    return _function(node.overload)


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


def overwrites(node: Node) -> bool:
    """Whether it overwrites its first argument."""
    parts = node.overload.split(".")
    return len(parts) > 1 and parts[1].endswith("_") and not parts[1].endswith("__")


def arguments_of(node: Node) -> dict[str, Any]:
    """The arguments of a call by name and in order, defaults included."""
    arguments = _arguments(node.overload)
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


def execute(node: Node, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Runs a call on tensors without changing any of them."""
    function, arguments = function_of(node), _arguments(node.overload) or ()
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
    parts = node.overload.split(".")
    if not overwrites(node) or parts[0] != "aten" or node.op not in _PLAIN:
        return None
    packet = getattr(torch.ops.aten, node.op, None)
    return getattr(packet, parts[2] if len(parts) > 2 else "default", None)


def is_pointwise(node: Node) -> bool:
    """Whether torch says that an operation treats every element by itself."""
    try:
        return torch.Tag.pointwise in getattr(_function(node.overload), "tags", ())
    except UnknownOperator:
        return False
