"""Operators as a recorder saw them: questions asked of their schemas."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from functools import cache
from typing import Any

from varshift.flow._raw import RawNode
from varshift.flow._vocabulary import MIXING, NORMALISING


@dataclass(frozen=True, slots=True)
class OpInfo:
    """An operator's name and the parts of its schema that matter.

    Attributes:
        name: Base name without namespace, overload and in-place mark, ``"add"``.
        text: Full name, ``"aten.add_.Tensor"``.
        arguments: Argument names in order, keyword-only ones included.
        defaults: Default values by argument name.
        writes: Names of arguments that are written to.
        outs: Names of ``out=`` arguments among them.
        aliases: For each result, the argument it shares memory with, or None.
        tensor_result: Whether there is a tensor among the results at all.
    """

    name: str
    text: str
    arguments: tuple[str, ...] = ()
    defaults: tuple[tuple[str, Any], ...] = ()
    writes: tuple[str, ...] = ()
    outs: tuple[str, ...] = ()
    aliases: tuple[str | None, ...] = ()

    @property
    def is_norm(self) -> bool:
        """Whether it normalises with running statistics it is handed."""
        return "running_mean" in self.arguments and not any(
            word in self.name for word in ("update_stats", "gather_stats", "backward", "elemt")
        )

    @property
    def mixes(self) -> bool:
        """Whether every result may depend on many units of the signal."""
        return (
            self.name in MIXING
            or self.name in NORMALISING
            or "attention" in self.name
            or "convolution" in self.name
            or self.name.startswith(("linalg_", "fft_"))
        )


@cache
def _describe(op: Any) -> OpInfo:
    schema = getattr(op, "_schema", None)
    if schema is None:
        name = op if isinstance(op, str) else getattr(op, "__name__", str(op))
        return OpInfo(name, name)
    bare = schema.name.split("::")[-1]
    name = bare[:-1] if bare.endswith("_") and not bare.endswith("__") else bare
    arguments = tuple(argument.name for argument in schema.arguments)
    writes, sets = [], []
    for argument in schema.arguments:
        info = argument.alias_info
        if info is not None and info.is_write:
            writes.append(argument.name)
        sets.append((argument.name, info.before_set | info.after_set if info is not None else set()))
    aliases = []
    for returned in schema.returns:
        info = returned.alias_info
        found = None
        if info is not None:
            found = next((name for name, labels in sets if labels & info.before_set), None)
            # The parts of a tensor that is split are a list, of whose items the schema knows no label.
            found = found or next((name for name, labels in sets if "*" in labels), None)
        aliases.append(found)
    defaults = tuple(
        (argument.name, argument.default_value)
        for argument in schema.arguments
        if argument.has_default_value()
    )
    outs = tuple(a.name for a in schema.arguments if a.name in writes and a.is_out)
    return OpInfo(name, str(op), arguments, defaults, tuple(writes), outs, tuple(aliases))


def describe(node: RawNode) -> OpInfo:
    """What is known about a node's operator."""
    if node.op is None:
        return OpInfo(node.role, node.role)
    if node.op is operator.getitem:
        return _GETITEM
    return _describe(node.op)


_GETITEM = OpInfo("getitem", "getitem", ("self", "index"), aliases=())


def bind(node: RawNode) -> dict[str, Any]:
    """A call's arguments by name, defaults included."""
    info = describe(node)
    bound = dict(info.defaults)
    bound.update(zip(info.arguments, node.args, strict=False))
    bound.update(node.kwargs)
    return bound
