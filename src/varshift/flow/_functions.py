"""Whether a network computes the same in both modes, noise and norms apart, and where it begins to differ."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from torch import Tensor

from varshift.flow._difference import Parting
from varshift.flow._operators import UnknownOperator, arguments_of
from varshift.flow._types import Flow, Node, Ref

# What says only whether noise acts, or which statistics a norm uses.
_SWITCHES = frozenset({"train", "training", "dropout_p", "dropout", "use_input_stats", "dropout_seed"})
# Operations that hand on what they get.
_COPIES = frozenset({"detach", "alias", "clone", "contiguous", "to", "_to_copy", "lift_fresh", "view_as"})
_SCALES = frozenset({"mul", "div", "add", "sub"})
_NO_CALLS = frozenset({"input", "parameter", "buffer", "attribute", "constant", "output"})
_SMALL = 16  # elements of a constant that are compared


@dataclass(frozen=True, slots=True)
class FunctionDifference:
    """The first place at which a network computes something else in train mode than in eval mode.

    Attributes:
        train: The first operation there that runs, or runs so, in train mode only; None where there is none.
        eval: The same for eval mode.
        places: Number of places at which the two differ.
    """

    train: Parting | None
    eval: Parting | None
    places: int


def difference_of(train: Flow, evaluation: Flow) -> FunctionDifference | None:
    """Aligns the operations of both modes that lead to the main output, without noise and norms.

    Args:
        train: The network in train mode.
        evaluation: The network in eval mode.

    Returns:
        Where they begin to differ; None where they compute the same.
    """
    first, second = _outputs(train, evaluation)
    one, other = list(_calls(train, first)), list(_calls(evaluation, second))
    keys = [_key(train, node) for node in one], [_key(evaluation, node) for node in other]
    if keys[0] == keys[1]:
        return None
    optional = _noise(train), _noise(evaluation)
    places: list[tuple[list[Node], list[Node]]] = []
    for tag, a, b, c, d in SequenceMatcher(None, *keys, autojunk=False).get_opcodes():
        left = [node for node in one[a:b] if node.index not in optional[0]]
        right = [node for node in other[c:d] if node.index not in optional[1]]
        if tag != "equal" and (left or right):
            places.append((left, right))
    if not places:
        return None
    left, right = places[0]
    return FunctionDifference(
        _parting(left[0], 1) if left else None, _parting(right[0], 2) if right else None, len(places)
    )


def _parting(node: Node, only: int) -> Parting:
    return Parting(node.module, node.cls, node.op, node.source, only)


def _outputs(train: Flow, evaluation: Flow) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The nodes of the main output in both modes, or of all outputs where these are not alike."""
    every = [
        tuple(index for node in flow.nodes if node.kind == "output" for index in node.inputs)
        for flow in (train, evaluation)
    ]
    if not (every[0] and every[1]):
        return every[0], every[1]
    first, second = train.nodes[every[0][0]], evaluation.nodes[every[1][0]]
    if first.shape == second.shape:
        return (first.index,), (second.index,)
    return every[0], every[1]


def _calls(flow: Flow, outputs: tuple[int, ...]) -> Iterator[Node]:
    """The operations that lead to some outputs, in order, without norms, random numbers and copies."""
    nodes = flow.nodes
    noise = {site.node for site in flow.noises}
    random = _random(flow, noise)
    live, pending = set[int](), list(outputs)
    while pending:
        index = pending.pop()
        if index in live:
            continue
        live.add(index)
        # Noise is nothing but the signal that it meets.
        pending += [i for i in nodes[index].inputs if not (index in noise and random[i])]
    norms = {call for site in flow.norms for call in site.calls}
    own = _norm_modules(flow)
    for node in nodes:
        if node.index not in live or node.kind in _NO_CALLS or random[node.index]:
            continue
        if node.index in norms or node.kind == "norm" or node.has("dropout") or node.op in _COPIES:
            continue
        if node.module not in own:
            yield node


def _norm_modules(flow: Flow) -> set[str]:
    """Modules that are there for a norm: all inside of one written by hand, else those without parts."""
    modules = {node.module for node in flow.nodes}
    found = set[str]()
    for site in flow.norms:
        name = site.name.partition("#")[0]
        inside = {module for module in modules if name and module.startswith(f"{name}.")}
        if site.kind == "hand_written" or (name and not inside):
            found |= {name, *inside}
    return found


def _random(flow: Flow, noise: set[int]) -> list[bool]:
    """Which values derive from random numbers and have not met a signal."""
    found: list[bool] = []
    for node in flow.nodes:
        drawn = node.kind == "random" or any(found[i] for i in node.inputs)
        found.append(drawn and node.index not in noise)
    return found


def _noise(flow: Flow) -> set[int]:
    """Noise, and multiplications with numbers right before and after it: they rescale what it drops."""
    found = {site.node for site in flow.noises}
    users: dict[int, list[int]] = {}
    for node in flow.nodes:
        for index in node.inputs:
            users.setdefault(index, []).append(node.index)
        if node.op in _SCALES and len(node.inputs) == 1 and node.inputs[0] in found:
            found.add(node.index)
    for node in reversed(flow.nodes):
        used = users.get(node.index, [])
        if node.op in _SCALES and len(node.inputs) == 1 and used and all(index in found for index in used):
            found.add(node.index)
    return found


def _key(flow: Flow, node: Node) -> tuple[Any, ...]:
    """What an operation is: who calls it, what it does, with which numbers and which weights."""
    try:
        arguments = arguments_of(node)
    except UnknownOperator:
        arguments = {str(place): value for place, value in enumerate(node.args)} | dict(node.kwargs)
    values = tuple(_plain(flow, value) for name, value in arguments.items() if name not in _SWITCHES)
    return node.module, node.op, values


def _plain(flow: Flow, value: Any) -> Any:
    if isinstance(value, Ref):
        node = flow.nodes[value.index]
        if node.kind in ("parameter", "buffer", "attribute"):
            return node.target
        if node.kind == "constant" and isinstance(node.value, Tensor) and node.value.numel() <= _SMALL:
            return str(node.value.flatten().tolist())
        return "value"
    if isinstance(value, (tuple, list)):
        return tuple(_plain(flow, item) for item in value)
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)
