"""What the training flag of a module decides, as its code says: noise, a norm, or both."""

from __future__ import annotations

import dis
import re
import types
from collections.abc import Iterator
from functools import cache

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

# Functions that draw random numbers, by how libraries and people call them.
_RANDOM = re.compile(
    r"drop|bernoulli|rand(?!om_state)|noise|normal_$|^normal$|uniform_?$|multinomial|gumbel|poisson|rrelu"
    r"|exponential_|cauchy_|jitter"
)
_KERNEL = re.compile(r"^(instance|batch)_norm")
_NEAR = 3  # instructions between reading a buffer and the method that writes into it


def makes_noise(module: nn.Module) -> bool:
    """Whether code of a module itself may draw random numbers, as opposed to that of modules inside it."""
    return any(_RANDOM.search(name) and _is_called(module, name) for name in _names(type(module)))


def calls_norm(module: nn.Module) -> bool:
    """Whether code of a module that is no norm of torch's calls a norm's function itself."""
    if isinstance(module, _NormBase) and not _own_functions(type(module)):
        return False
    return isinstance(module, _NormBase) or any(
        _KERNEL.search(name) and _is_called(module, name) for name in _names(type(module))
    )


def writes_statistics(module: nn.Module) -> bool:
    """Whether code of a module writes into tensors of its own that no optimiser trains.

    A plain attribute that its code writes and never reads is a result kept for others.
    """
    written = _written(type(module))
    return bool(written) and any(name in written for name in _untrained(module))


def may_write_statistics(module: nn.Module) -> bool:
    """Whether code of a module writes in place, and reads tensors of its own that no optimiser trains.

    Whether it writes into these, by another name or as an item of a container, is not known.
    """
    cls = type(module)
    return _in_place(cls) and any(True for _ in _untrained(module, containers=True))


def _untrained(module: nn.Module, *, containers: bool = False) -> Iterator[str]:
    """Names of the real-valued tensors that a module holds and its code reads, and no optimiser trains."""
    for name, value in (*module._buffers.items(), *module._parameters.items()):
        if _is_untrained(value):
            yield name
    read = _read(type(module))
    for name, value in vars(module).items():
        if name not in read:
            continue
        items = (
            value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
        )
        if _is_untrained(value) or (containers and any(map(_is_untrained, items))):
            yield name


def _is_untrained(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and not value.requires_grad


def _is_called(module: nn.Module, name: str) -> bool:
    """Whether a name in a module's code can be a function; its submodules and settings are none."""
    if name in module._modules:
        return False
    value = vars(module).get(name, getattr(type(module), name, None))
    return (
        value is None
        or isinstance(value, (types.FunctionType, types.MethodType, property))
        or callable(value)
    )


@cache
def _names(cls: type[nn.Module]) -> frozenset[str]:
    """The names that the code of a class uses, but for what it inherits from torch."""
    return frozenset(
        name
        for function in _own_functions(cls)
        for code in _codes(function.__code__)
        for name in (*code.co_names, *code.co_freevars)
    )


@cache
def _written(cls: type[nn.Module]) -> frozenset[str]:
    """The attributes of a class that its code assigns or overwrites in place, outside of its constructor."""
    found: set[str] = set()
    for function in _own_functions(cls):
        for code in _codes(function.__code__):
            instructions = list(dis.get_instructions(code))
            for place, instruction in enumerate(instructions):
                if instruction.opname == "STORE_ATTR":
                    found.add(str(instruction.argval))
                elif instruction.opname == "LOAD_ATTR":
                    following = instructions[place + 1 : place + 1 + _NEAR]
                    if any(_writes(other) for other in following):
                        found.add(str(instruction.argval))
    return frozenset(found)


@cache
def _read(cls: type[nn.Module]) -> frozenset[str]:
    """The attributes that the code of a class reads."""
    return frozenset(
        str(instruction.argval)
        for function in _own_functions(cls)
        for code in _codes(function.__code__)
        for instruction in dis.get_instructions(code)
        if instruction.opname == "LOAD_ATTR"
    )


@cache
def _in_place(cls: type[nn.Module]) -> bool:
    """Whether code of a class writes into any tensor in place."""
    return any(
        _writes(instruction)
        for function in _own_functions(cls)
        for code in _codes(function.__code__)
        for instruction in dis.get_instructions(code)
    )


def _writes(instruction: dis.Instruction) -> bool:
    if instruction.opname in ("STORE_SUBSCR", "BINARY_OP"):
        return instruction.opname == "STORE_SUBSCR" or instruction.argrepr.endswith("=")
    name = str(instruction.argval)
    return (
        instruction.opname in ("LOAD_METHOD", "LOAD_ATTR") and name.endswith("_") and not name.endswith("__")
    )


def _own_functions(cls: type[nn.Module]) -> list[types.FunctionType]:
    """The methods of a class but its constructor, without those of torch's classes."""
    return [
        function
        for base in cls.__mro__
        if not base.__module__.startswith("torch.") and base is not object
        for name, value in vars(base).items()
        if name not in ("__init__", "__setstate__", "extra_repr", "reset_parameters")
        for function in [getattr(value, "fget", None) or getattr(value, "__func__", value)]
        if isinstance(function, types.FunctionType)
    ]


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)
