"""From a target to a network."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from varshift._errors import VarshiftError
from varshift.cli._errors import user_code_error
from varshift.cli._objects import resolve_object, suggestion

# What people call an object with all settings.
_CONFIGURATIONS = ("cfg", "config", "conf", "args", "opt", "opts", "options", "hparams", "params", "settings")


def resolve_model(target: str, arguments: dict[str, Any], *, seed: int = 0) -> nn.Module:
    """The network that a target names.

    Args:
        target: ``package.module:callable``, ``path/to/file.py:callable``, ``timm:NAME`` or
            ``torchvision:NAME``. In place of the callable the network itself may stand.
        arguments: Keyword arguments for the callable.
        seed: Set before anything is imported, and again before the callable runs, so that random weights do
            not depend on what was imported on the way.

    Raises:
        VarshiftError: If there is no such thing, the arguments do not fit, or what comes of it is no network.
        UserCodeError: If the user's code fails.
    """
    torch.manual_seed(seed)
    if is_zoo(target):
        zoo, _, name = target.partition(":")
        from varshift.cli._zoo import build_timm, build_torchvision

        return (build_timm if zoo == "timm" else build_torchvision)(name, arguments)
    found = resolve_object(target, "target")
    if isinstance(found, nn.Module):
        if arguments:
            raise VarshiftError(f"--arg: {target!r} is a network already and takes no arguments.")
        return found
    if not callable(found):
        raise VarshiftError(
            f"target: {target!r} is {_kind(found)}, not a network or a callable that makes one."
        )
    check_signature(found, arguments, target)
    torch.manual_seed(seed)
    try:
        made = found(**arguments)
    except (Exception, SystemExit) as error:
        raise user_code_error(f"target: calling {target}", error) from error
    return _checked(made, target)


def is_zoo(target: str) -> bool:
    """Whether a target is a network of a library of networks."""
    zoo, _, name = target.partition(":")
    return zoo in ("timm", "torchvision") and bool(name)


def check_signature(
    function: Callable[..., Any], arguments: Mapping[str, Any], target: str, option: str = "target"
) -> None:
    """Makes sure that a callable takes these keyword arguments, and needs no others.

    Raises:
        VarshiftError: If not, with what it does take.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return
    flag = "--arg" if option == "target" else "--data-arg"
    known = [
        name
        for name, parameter in signature.parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    anything = any(item.kind is item.VAR_KEYWORD for item in signature.parameters.values())
    takes = f" It takes {', '.join(known)}." if known else " It takes no arguments."
    for key in arguments:
        if key not in known and not anything:
            raise VarshiftError(f"{flag}: {target!r} has no argument {key!r}{suggestion(key, known)}{takes}")
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise VarshiftError(
            f"{option}: {target!r} cannot be called with what was given ({error}): "
            f"give the rest with {flag} KEY=VALUE, or name a function that needs none."
            f"{_wrapper(signature, arguments, target) if option == 'target' else ''}"
        ) from None


def _wrapper(signature: inspect.Signature, arguments: Mapping[str, Any], target: str) -> str:
    """A sentence with the lines to write where a callable needs a configuration, which no text can give."""
    missing = [
        name
        for name, item in signature.parameters.items()
        if item.default is item.empty and item.kind is item.POSITIONAL_OR_KEYWORD and name not in arguments
    ]
    if len(missing) != 1 or missing[0] not in _CONFIGURATIONS:
        return ""
    place, _, name = target.rpartition(":")
    module = place.replace("\\", "/").rpartition("/")[2].removesuffix(".py")
    return (
        f" If {missing[0]!r} is an object, write a file next to it with the lines "
        f"`from types import SimpleNamespace`, `from {module} import {name}`, `def network():`, "
        f"`    return {name}(SimpleNamespace(width=64))`, and name its network."
    )


def _checked(made: Any, target: str) -> nn.Module:
    if isinstance(made, nn.Module):
        return made
    items = (
        made.items()
        if isinstance(made, Mapping)
        else enumerate(made)
        if isinstance(made, (tuple, list))
        else ()
    )
    for key, item in items:
        if isinstance(item, nn.Module):
            raise VarshiftError(
                f"target: {target!r} returned {_kind(made)} with a {type(item).__name__} at {key!r}: "
                "name a function that returns the network alone."
            )
    raise VarshiftError(f"target: {target!r} returned {_kind(made)}, not a torch.nn.Module.")


def _kind(value: Any) -> str:
    if value is None:
        return "None"
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeio' else 'a'} {name}"
