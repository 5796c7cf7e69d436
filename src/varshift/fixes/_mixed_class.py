"""A module's class with another behaviour on top: copied, pickled and named like the class itself."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import nn


def mixed_class(mixin: type, cls: type[nn.Module]) -> type[nn.Module]:
    """The subclass of a class that has the methods of a mixin in front of its own.

    An instance of `cls` may be given this class by ``module.__class__ = ...``: it keeps its attributes, and
    ``deepcopy``, pickle and ``torch.save`` keep the behaviour.

    Args:
        mixin: Class with the methods, which call ``super()``; it can be imported by its name.
        cls: Class of a module.
    """
    return cls if issubclass(cls, mixin) else _mixed(mixin, cls)


@cache
def _mixed(mixin: type, cls: type[nn.Module]) -> type[nn.Module]:
    names = {
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
        "__reduce_ex__": _reduce,
    }
    return type(cls.__name__, (mixin, cls), names)


def _reduce(module: nn.Module, protocol: int) -> tuple[Any, ...]:
    mixin, cls = type(module).__bases__
    return _instance, (mixin, cls), module.__getstate__()


def _instance(mixin: type, cls: type[nn.Module]) -> nn.Module:
    mixed = _mixed(mixin, cls)
    return mixed.__new__(mixed)
