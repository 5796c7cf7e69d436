"""What a tracer saw, before it is understood: a flat list of operations in order of execution."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from varshift.flow._types import CallFrame, Ref

Role = Literal["input", "parameter", "buffer", "attribute", "constant", "call", "output"]
Frame = tuple[str, int]


class Trace(Protocol):
    """The calls that led to an operation, decoded when they are asked for."""

    def frames(self) -> tuple[Frame, ...]:
        """The user's frames outermost first, as ``(file, line)``."""
        ...

    def call_frames(self) -> tuple[CallFrame, ...]:
        """The user's calls outermost first, with the places of their expressions; empty if not known."""
        ...

    def way(self) -> Hashable:
        """What identifies the position and all the calls that led there."""
        ...

    def place(self) -> Hashable:
        """What identifies the position inside its module."""
        ...


@dataclass(slots=True)
class RawNode:
    """One operation as a tracer recorded it.

    Attributes:
        role: What it stands for.
        op: The operator overload of a call (`operator.getitem` for one result of several).
        args: Arguments; earlier nodes stand as `Ref`.
        kwargs: Keyword arguments, likewise.
        module: Canonical path of the calling module.
        trace: The Python frames that called it.
        shape: Shape of the first tensor of the result.
        dtype: Its element type.
        target: Canonical name of a parameter, buffer or attribute.
        value: The tensor of a constant or an attribute.
    """

    role: Role
    op: Any = None
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    module: str = ""
    trace: Trace | None = None
    shape: tuple[int, ...] | None = None
    dtype: torch.dtype | None = None
    target: str | None = None
    value: Tensor | None = None


class PlacedTrace(Trace, Protocol):
    """A trace that knows the module at work."""

    @property
    def module(self) -> str:
        """Its path."""
        ...


@dataclass(frozen=True, slots=True)
class HostDraw:
    """Random numbers that Python drew at one place of its code.

    Attributes:
        node: Number of the operations recorded before it drew the first one.
        function: Name of the function of `random` that was called, ``"random"`` for `random.uniform` too.
        trace: What led there.
    """

    node: int
    function: str
    trace: PlacedTrace


@dataclass(slots=True)
class Recording:
    """One traced pass.

    Attributes:
        nodes: Its operations in order, parameters, buffers and inputs first.
        written: Names of the parameters, buffers and attributes that the pass changed.
        writes_input: Whether it wrote to a tensor of its batch.
        replaced: For each buffer and attribute that holds another tensor than before the pass, or none of
            its own before, the node of the new one.
        host_draws: The random numbers that Python drew, one for each place, where these were listened for.
    """

    nodes: list[RawNode] = field(default_factory=list)
    written: tuple[str, ...] = ()
    writes_input: bool = False
    replaced: dict[str, int] = field(default_factory=dict)
    host_draws: list[HostDraw] = field(default_factory=list)


def map_refs(value: Any, function: Callable[[Ref], Any]) -> Any:
    """Replaces every `Ref` inside nested arguments."""
    if isinstance(value, Ref):
        return function(value)
    if isinstance(value, (tuple, list)):
        items = (map_refs(item, function) for item in value)
        return list(items) if isinstance(value, list) else tuple(items)
    if isinstance(value, dict):
        return {key: map_refs(item, function) for key, item in value.items()}
    return value


def iterate_refs(value: Any) -> Iterator[int]:
    """Indices of the nodes among nested arguments, in order."""
    if isinstance(value, Ref):
        yield value.index
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from iterate_refs(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from iterate_refs(item)


def first_shape(value: Any) -> tuple[tuple[int, ...] | None, torch.dtype | None]:
    """Shape and element type of the first tensor in a result."""
    if type(value) is Tensor and not value.is_nested:
        return tuple(value.shape), value.dtype
    if isinstance(value, Tensor):
        if value.is_nested:  # rows of different lengths: there is no one shape
            return None, value.dtype
        return tuple(int(size) for size in value.shape), value.dtype
    if isinstance(value, (tuple, list)):
        for item in value:
            shape, dtype = first_shape(item)
            if shape is not None:
                return shape, dtype
    return None, None
