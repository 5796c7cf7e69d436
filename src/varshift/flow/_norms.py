"""Norm sites: operators that are handed running statistics, and norms written by hand."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from varshift.flow._calls import find_calls
from varshift.flow._census import HandNorm, inside
from varshift.flow._graph import Graph
from varshift.flow._ops import bind
from varshift.flow._raw import iterate_refs
from varshift.flow._types import Mode
from varshift.flow._vocabulary import VIEWS
from varshift.model import NormStates, Place

_TRANSPARENT_STEPS = 8


@dataclass(slots=True)
class Norm:
    """A norm site under construction; see `NormSite`."""

    name: str
    kind: str
    channels: int
    batch_statistics: bool
    tracked: bool
    states: NormStates | None = None
    calls: list[int] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)


def find_norms(
    graph: Graph, modules: Mapping[str, nn.Module], hand_written: Sequence[HandNorm], mode: Mode
) -> tuple[list[Norm], dict[int, int], set[int]]:
    """Finds the norm sites of a graph.

    Args:
        graph: The graph.
        modules: The model's modules by canonical name.
        hand_written: The norms that are more than one operator.
        mode: The mode of the graph.

    Returns:
        The norms in order of execution, for each node that is a call of one its position among them, and
        the nodes that compute statistics inside hand-written norms.
    """
    norms: dict[str, Norm] = {}
    calls: dict[int, str] = {}
    by_target = {target: norm for norm in hand_written for target in norm.targets}
    by_name = {norm.name: norm for norm in hand_written}
    explicit: set[str] = set()
    sizes = {node.target: node.shape or () for node in graph.nodes if node.target is not None}
    for index, node in enumerate(graph.nodes):
        if node.role != "call" or not graph.infos[index].is_norm:
            continue
        norm = _operator_norm(graph, index, modules, by_target, by_name, sizes)
        if norm is None:
            continue
        _rename(norm, norms)
        _record(norms, norm, graph, index, _input(graph, index))
        calls[index] = norm.name
        explicit.add(norm.name)
    others = [norm for norm in hand_written if norm.name not in explicit]
    found, statistics = find_calls(graph, others)
    for call in found:
        states = call.norm.states
        if not states.own_input:
            inputs = [other.input for other in found if other.norm is call.norm]
            states = _with_places(graph, call.norm, inputs, mode)
        norm = Norm(call.norm.name, "hand_written", states.channels, call.batch_statistics, True, states)
        _record(norms, norm, graph, call.node, call.input)
        calls[call.node] = norm.name
    ordered = sorted(norms.values(), key=lambda norm: norm.calls[0])
    place = {norm.name: position for position, norm in enumerate(ordered)}
    return ordered, {index: place[name] for index, name in calls.items()}, statistics


def _rename(norm: Norm, others: Mapping[str, Norm]) -> None:
    """Gives a second norm of one module a name of its own."""
    name, number = norm.name, 1
    while norm.name in others and _mean(others[norm.name]) != _mean(norm):
        number += 1
        norm.name = f"{name}#{number}"


def _mean(norm: Norm) -> str | None:
    return norm.states.mean if norm.states is not None else None


def _with_places(graph: Graph, norm: HandNorm, inputs: Sequence[int], mode: Mode) -> NormStates:
    """The states of a norm, with the operations that return what it normalises."""
    module = norm.name.partition("#")[0]
    counts: Counter[str] = Counter()
    places: list[Place] = []
    for index, node in enumerate(graph.nodes):
        if node.role != "call" or not inside(node.module, module):
            continue
        text = graph.infos[index].text
        counts[text] += 1
        if index in inputs:
            places.append((text, counts[text]))
    if mode == "train":
        return replace(norm.states, train_places=tuple(places))
    return replace(norm.states, eval_places=tuple(places))


def _record(norms: dict[str, Norm], norm: Norm, graph: Graph, index: int, source: int | None) -> None:
    known = norms.setdefault(norm.name, norm)
    known.batch_statistics = known.batch_statistics or norm.batch_statistics
    shape = (graph.nodes[source].shape if source is not None else None) or ()
    if norm.kind == "instance_norm" and len(shape) > 1 and norm.channels and shape[1] != norm.channels:
        # Its decomposition folds the samples into the channels.
        shape = (shape[0] * shape[1] // norm.channels, norm.channels, *shape[2:])
    known.calls.append(index)
    known.shapes.append(shape)


def norm_input(graph: Graph, index: int) -> tuple[int, ...]:
    """The nodes whose values a norm call normalises."""
    info = graph.infos[index]
    if not info.is_norm:
        return graph.inputs[index]
    return tuple(operand.node for operand in graph.operands[index] if operand.argument in ("input", "self"))


def _input(graph: Graph, index: int) -> int | None:
    return next(iter(norm_input(graph, index)), None)


def _operator_norm(
    graph: Graph,
    index: int,
    modules: Mapping[str, nn.Module],
    by_target: Mapping[str, HandNorm],
    by_name: Mapping[str, HandNorm],
    sizes: Mapping[str, tuple[int, ...]],
) -> Norm | None:
    node, info = graph.nodes[index], graph.infos[index]
    bound = bind(node)
    training = bound.get("training", bound.get("train", bound.get("use_input_stats")))
    if training is None:
        training = "no_training" not in info.name and "no_update" not in info.name
    source = _input(graph, index)
    if source is not None and graph.learned[source] and not graph.signal[source]:
        return None  # standardises weights, as scaled weight standardisation does: no sample is in it
    shape = (graph.nodes[source].shape if source is not None else None) or ()
    channels = shape[1] if len(shape) > 1 else 0
    mean = next(iterate_refs(bound.get("running_mean")), None)
    owner, repeated = _statistics_owner(graph, mean)
    module = modules.get(node.module)
    # Instance norm is carried out as batch norm of one sample with all channels of all samples.
    folded = repeated and shape[:1] == (1,) and not isinstance(module, nn.modules.batchnorm._BatchNorm)
    by_class = isinstance(module, nn.modules.instancenorm._InstanceNorm)
    instance = info.name == "instance_norm" or folded or by_class
    if owner is None:
        if instance:
            return None  # statistics of one sample: the same in both modes
        known = by_name.get(node.module)
        tracked = known is not None or mean is not None
        states = known.states if known is not None else None
        return Norm(node.module, "batch_norm", channels, bool(training) or not tracked, tracked, states)
    kind = "instance_norm" if instance else "batch_norm"
    known = by_target.get(owner)
    if known is not None:
        return Norm(known.name, kind, known.states.channels, bool(training), True, known.states)
    variance, _ = _statistics_owner(graph, next(iterate_refs(bound.get("running_var")), None))
    # One row of statistics for each kind of sample arrives as a view of one of them.
    whole, used = sizes[owner], graph.nodes[mean].shape or () if mean is not None else ()
    size = whole[-1] if whole else 0
    rows = math.prod(whole[:-1]) if used == whole[-1:] else 1
    momentum = bound.get("momentum")
    states = NormStates(
        owner,
        variance,
        channels=size or channels,
        rows=rows,
        momentum=float(momentum) if isinstance(momentum, (int, float)) else None,
        per_sample=instance,
        unsupported=None if variance is not None else "what it hands its operator is no variance of its own",
    )
    return Norm(owner.rpartition(".")[0], kind, size or channels, bool(training), True, states)


def _statistics_owner(graph: Graph, ref: int | None) -> tuple[str | None, bool]:
    """The state that a statistic handed to an operator is, and whether it was repeated per sample."""
    repeated = False
    for _ in range(_TRANSPARENT_STEPS):
        if ref is None:
            return None, False
        node = graph.nodes[ref]
        if node.target is not None:
            return node.target, repeated
        name = graph.infos[ref].name
        repeated = repeated or name == "repeat"
        if node.role != "call" or name not in VIEWS:
            return None, False
        ref = next(iterate_refs(node.args), None)
    return None, False
