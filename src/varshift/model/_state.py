"""A place in a live module that holds a running statistic: a buffer, a parameter, or an attribute."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class State:
    """A place in a module that holds a tensor; the tensor itself may be replaced there.

    Attributes:
        module: The module.
        keys: Name of the buffer, parameter or attribute, and for one that holds tensors in a list or a
            dictionary the way to the item.
    """

    module: nn.Module
    keys: tuple[Any, ...]

    @property
    def tensor(self) -> Tensor:
        """The tensor that is there now."""
        value = getattr(self.module, self.keys[0])
        for key in self.keys[1:]:
            value = value[key]
        return value


def find_state(model: nn.Module, name: str) -> State | None:
    """The place of that name, ``"blocks.2.ema_mean"``; None when it holds no tensor (yet)."""
    module, rest = model, name.split(".")
    while rest and rest[0] in module._modules:
        child = module._modules[rest[0]]
        if child is None:
            return None
        module, rest = child, rest[1:]
    if not rest:
        return None
    value: Any = getattr(module, rest[0], None)
    keys: list[Any] = [rest[0]]
    rest = rest[1:]
    while rest and isinstance(value, (dict, list, tuple)):
        key = _key(value, rest)
        if key is None:
            return None
        keys.append(key)
        value, rest = value[key], rest[len(str(key).split(".")) :]
    return State(module, tuple(keys)) if isinstance(value, Tensor) and not rest else None


def _key(container: Any, rest: list[str]) -> Any:
    """The key of a container that the next parts of a name spell."""
    keys = container.keys() if isinstance(container, dict) else range(len(container))
    for key in keys:
        if str(key).split(".") == rest[: len(str(key).split("."))]:
            return key
    return None
