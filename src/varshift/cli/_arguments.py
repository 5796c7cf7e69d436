"""Values given on the command line as text: ``--arg``, ``--shape``, ``--device``."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from typing import Any

from varshift._errors import VarshiftError
from varshift.cli._errors import one_line


def parse_arguments(items: Sequence[str] | None, option: str = "--arg") -> dict[str, Any]:
    """Keyword arguments from ``key=value`` texts; values are Python literals where they read as such.

    Raises:
        VarshiftError: If a text has no ``=``, its key is no identifier, or a key comes twice.
    """
    arguments: dict[str, Any] = {}
    for item in items or ():
        key, equals, value = item.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not key.isidentifier():
            raise VarshiftError(f"{option}: {item!r} must read KEY=VALUE, as in {option} drop_rate=0.2.")
        if key in arguments:
            raise VarshiftError(f"{option}: {key!r} is given twice.")
        arguments[key] = literal(value)
    return arguments


def parse_cures(items: Sequence[str] | None) -> dict[str, dict[str, Any]]:
    """Cures with their options from texts ``code`` or ``code:key=value,key=value``.

    Raises:
        VarshiftError: If an option has no ``=``, or a cure or a key comes twice.
    """
    cures: dict[str, dict[str, Any]] = {}
    for item in items or ():
        code, colon, text = item.partition(":")
        code = code.strip()
        if not code or code in cures:
            reason = "is given twice" if code else "has no code"
            raise VarshiftError(f"--cure: {item!r} {reason}.")
        cures[code] = {}
        # A comma within a value stays: it separates only where another key follows.
        for option in re.split(r",(?=\s*[A-Za-z_][\w-]*\s*=)", text) if colon else ():
            key, equals, value = option.partition("=")
            key = key.strip().replace("-", "_")
            if not equals or not key.isidentifier():
                raise VarshiftError(
                    f"--cure: {item!r} must read CODE or CODE:KEY=VALUE,KEY=VALUE, as in "
                    "--cure recalibrate:frozen=true."
                )
            if key in cures[code]:
                raise VarshiftError(f"--cure: {item!r} gives {key!r} twice.")
            cures[code][key] = literal(value)
    return cures


def literal(text: str) -> Any:
    """The value of a text: a Python literal where it reads as one, else the text itself."""
    # The words other languages use for these would otherwise become text, which is true.
    words = {"true": True, "false": False, "none": None, "null": None}
    if text.strip().lower() in words:
        return words[text.strip().lower()]
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def parse_shapes(items: Sequence[str] | None) -> list[tuple[int, ...]] | None:
    """Input shapes without the batch dimension, from ``3,224,224`` or ``3x224x224``; None without any.

    Raises:
        VarshiftError: If a text is not a list of positive whole numbers.
    """
    if not items:
        return None
    return [_shape(item) for item in items]


def _shape(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in re.split(r"[,x]", text.strip(" ()[]").removesuffix(","))]
    if not all(re.fullmatch(r"[0-9]+", part) and int(part) > 0 for part in parts):
        raise VarshiftError(
            f"--shape: {text!r} must be positive whole numbers without the batch dimension, as in "
            "--shape 3,224,224."
        )
    return tuple(int(part) for part in parts)


def check_data_or_shape(data: str | None, shapes: Sequence[tuple[int, ...]] | None) -> None:
    """Makes sure that inputs come from data, or are made from a shape, but not both.

    Raises:
        VarshiftError: If both are given.
    """
    if data is not None and shapes is not None:
        raise VarshiftError("--shape is used instead of --data: give one of the two.")


def check_device(text: str | None) -> str | None:
    """Makes sure, before long work, that a device exists.

    Raises:
        VarshiftError: If it is no name of a device or there is none of that name here.
    """
    if text is None:
        return None
    import torch

    try:
        device = torch.device(text)
        if device.type == "meta":
            raise RuntimeError("tensors on it have no values")
        torch.zeros(1, device=device).cpu()
    except Exception as error:  # each back end has its own way of saying that it is not there
        reason = one_line(str(error).splitlines()[0] if str(error) else type(error).__name__).rstrip(".")
        if reason.startswith("Expected one of"):  # and a list of everything torch has ever run on
            reason = "torch knows no such device"
        raise VarshiftError(
            f"--device: {text!r} cannot be used here: {reason}. Usable: {', '.join(_devices())}."
        ) from error
    return text


def _devices() -> list[str]:
    import torch

    names = ["cpu"]
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is not None:
        names += [f"{accelerator.type}:{index}" for index in range(torch.accelerator.device_count())]
    return names
