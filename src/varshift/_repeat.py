"""The text of a call: what is written into a report so that the check can be repeated."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch


def call_text(function: Callable[..., Any], arguments: Mapping[str, Any], *, leave_out: str = "") -> str:
    """A call of one of varshift's functions as it is written in Python.

    Values are written out where they can be. A model, a loader or a tensor is written as the name of its
    parameter, a function as its own name with its module.

    Args:
        function: The function, public as ``varshift.NAME``.
        arguments: Its arguments by name; those that have their default are not written.
        leave_out: Name of an argument that does not change what the call returns.
    """
    words = []
    for name, parameter in inspect.signature(function).parameters.items():
        value = arguments[name]
        if name == leave_out or (_is_literal(value) and value == parameter.default):
            continue
        text = _text(name, value)
        words.append(text if parameter.kind is parameter.POSITIONAL_OR_KEYWORD else f"{name}={text}")
    return f"varshift.{function.__name__}({', '.join(words)})"


def _text(name: str, value: Any) -> str:
    if _is_literal(value):
        return repr(tuple(value) if isinstance(value, torch.Size) else value)
    if isinstance(value, torch.device):
        return repr(str(value))
    if inspect.isfunction(value) and value.__qualname__.isidentifier():
        return value.__name__ if value.__module__ == "__main__" else f"{value.__module__}.{value.__name__}"
    return name


def _is_literal(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_literal(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str))
