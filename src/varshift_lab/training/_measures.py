"""What is measured of a trained network, by name."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from typing import Any

from torch import nn

from varshift.trials import Measurements, Workbench
from varshift_lab.data import Images
from varshift_lab.training._settings import TrainingSettings

Measure = Callable[[nn.Module, Images, Images, Workbench, TrainingSettings], Measurements]

_ROOM = __name__.rpartition(".")[0]
_BY_NAME: dict[str, Measure] = {}


def measure(name: str) -> Callable[[Measure], Measure]:
    """Registers a function of the trained network as a measure that trials can ask for by this name.

    It takes the network (in training mode, on the device), training and test images (on the device), the
    workbench and the settings, returns measurements, and leaves the network as it is. It stands at the top
    level of a module, since a trial that waits in a store names it by its module.

    Raises:
        ValueError: If another function has the name.
    """

    def register(function: Measure) -> Measure:
        if name in _BY_NAME and reference(_BY_NAME[name]) != reference(function):
            raise ValueError(f"name={name!r} is the measure {reference(_BY_NAME[name])} already.")
        _BY_NAME[name] = function
        return function

    return register


def reference(function: Measure) -> str:
    """Where a measure is found again: ``"module:function"``."""
    return f"{function.__module__}:{function.__qualname__}"


def stored_name(name: str) -> str:
    """How a trial names a measure so that every process finds it: those of other rooms by their reference.

    Raises:
        ValueError: If there is no such measure.
    """
    if ":" in name:
        find_measure(name)
        return name
    if name not in _BY_NAME:
        raise ValueError(f"measure={name!r} is unknown: use one of {', '.join(sorted(_BY_NAME))}.")
    function = _BY_NAME[name]
    return name if function.__module__.startswith(_ROOM) else reference(function)


def find_measure(name: str) -> Measure:
    """The measure of a stored name.

    Raises:
        ValueError: If there is none.
    """
    if ":" not in name:
        return _BY_NAME[stored_name(name)]
    try:
        found: Any = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"measure={name!r} cannot be imported ({error}).") from None
    if not callable(found):
        raise ValueError(f"measure={name!r} is no function.")
    return found  # type: ignore[return-value]
