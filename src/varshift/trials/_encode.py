"""Trials as plain data and back, so that they can wait in a store and be run elsewhere."""

from __future__ import annotations

import dataclasses
import math
import pkgutil
from typing import Any

from varshift._errors import VarshiftError

_TYPE = "type"


def encode(value: Any) -> Any:
    """Plain data of a trial: dataclasses become objects that name their type, tuples become lists.

    Raises:
        TypeError: If it holds anything else than trials may hold.
        ValueError: If a number is not finite.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"value={value!r} must be finite.")
        return value
    if isinstance(value, tuple):
        return [encode(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        named = {item.name: encode(getattr(value, item.name)) for item in dataclasses.fields(value)}
        return {_TYPE: f"{type(value).__module__}:{type(value).__qualname__}", **named}
    raise TypeError(
        f"{value!r} of type {type(value).__name__} cannot be part of a trial: use None, truth values, "
        "numbers, texts, tuples and frozen dataclasses of these."
    )


def decode(data: Any) -> Any:
    """The trial that `encode` made plain data of.

    Raises:
        VarshiftError: If a type is unknown or does not take these fields, as after a change of the recipes.
    """
    if isinstance(data, list):
        return tuple(decode(item) for item in data)
    if not isinstance(data, dict):
        return data
    name = data.get(_TYPE)
    try:
        found = pkgutil.resolve_name(name) if isinstance(name, str) else None
    except (ImportError, AttributeError, ValueError) as error:
        raise VarshiftError(f"type={name!r} of a trial is unknown ({error}): queue it again.") from None
    # Only dataclasses are ever called: a store cannot have anything else run.
    if not isinstance(found, type) or not dataclasses.is_dataclass(found):
        raise VarshiftError(f"type={name!r} of a stored trial is no dataclass: queue it again.")
    try:
        return found(**{key: decode(value) for key, value in data.items() if key != _TYPE})
    except (TypeError, ValueError) as error:
        raise VarshiftError(
            f"a stored trial does not fit {name} any more ({error}): queue it again."
        ) from error
