"""Norm sites: operators that are handed running statistics, and modules that keep their own by hand."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import nn

from varshift.flow._graph import Graph
from varshift.flow._ops import bind
from varshift.flow._raw import iterate_refs
from varshift.flow._vocabulary import STATISTICS, VIEWS

_RUNNING = re.compile(r"running|moving|(^|_)(ema|avg)(_|$)")
_MEAN = re.compile(r"mean|avg|average")
_VARIANCE = re.compile(r"var(iance)?($|_)|std($|_)")
_TRANSPARENT_STEPS = 8


@dataclass(slots=True)
class Norm:
    """A norm site under construction; see `NormSite`."""

    name: str
    kind: str
    channels: int
    batch_statistics: bool
    tracked: bool
    calls: list[int] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)


def find_norms(
    graph: Graph, modules: dict[str, nn.Module], aliases: dict[str, str]
) -> tuple[list[Norm], dict[int, int], set[int]]:
    """Finds the norm sites of a graph.

    Args:
        graph: The graph.
        modules: The model's modules by canonical name.
        aliases: Canonical module names by any path.

    Returns:
        The norms in order of execution, for each node that is a call of one its position among them, and
        the nodes that compute statistics inside hand-written norms.
    """
    norms: dict[str, Norm] = {}
    calls: dict[int, str] = {}
    explicit: set[str] = set()
    statistics: set[int] = set()
    for index, node in enumerate(graph.nodes):
        if node.role != "call" or not graph.infos[index].is_norm:
            continue
        norm = _operator_norm(graph, index, modules)
        if norm is None:
            continue
        _record(norms, norm, graph, index, _input(graph, index))
        calls[index] = norm.name
        explicit.add(node.module)
        explicit.add(norm.name)
    holders = {prefix for owner in explicit for prefix in _prefixes(owner)}
    for name in hand_written(modules):
        if name not in holders:
            for index, norm, source in _composite(graph, name, modules[name], statistics):
                _record(norms, norm, graph, index, source)
                calls[index] = name
    ordered = sorted(norms.values(), key=lambda norm: norm.calls[0])
    place = {norm.name: position for position, norm in enumerate(ordered)}
    return ordered, {index: place[name] for index, name in calls.items()}, statistics


def _prefixes(path: str) -> Iterator[str]:
    """A module's path and those of the modules around it, the root apart."""
    yield path
    while "." in path:
        path = path.rpartition(".")[0]
        yield path


def hand_written(modules: dict[str, nn.Module]) -> dict[str, tuple[str | None, str]]:
    """Modules that own running statistics: the names of their mean (if any) and variance buffers."""
    found: dict[str, tuple[str | None, str]] = {}
    for name, module in modules.items():
        buffers = {key: value for key, value in module._buffers.items() if value is not None}
        running = {key: value for key, value in buffers.items() if _RUNNING.search(key.lower())}
        variances = [key for key in running if _VARIANCE.search(key.lower())]
        means = [key for key in running if _MEAN.search(key.lower()) and key not in variances]
        if variances:
            size = running[variances[0]].numel()
            mean = next((key for key in means if running[key].numel() == size), None)
            if mean is not None or not means:
                found[name] = (mean, variances[0])
    return found


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


def _operator_norm(graph: Graph, index: int, modules: dict[str, nn.Module]) -> Norm | None:
    node, info = graph.nodes[index], graph.infos[index]
    bound = bind(node)
    training = bound.get("training", bound.get("train", bound.get("use_input_stats")))
    if training is None:
        training = "no_training" not in info.name and "no_update" not in info.name
    source = _input(graph, index)
    shape = (graph.nodes[source].shape if source is not None else None) or ()
    channels = shape[1] if len(shape) > 1 else 0
    owner, repeated = _statistics_owner(graph, next(iterate_refs(bound.get("running_mean")), None))
    module = modules.get(node.module)
    # Instance norm is carried out as batch norm of one sample with all channels of all samples.
    folded = repeated and shape[:1] == (1,) and not isinstance(module, nn.modules.batchnorm._BatchNorm)
    by_class = isinstance(module, nn.modules.instancenorm._InstanceNorm)
    instance = info.name == "instance_norm" or folded or by_class
    if owner is None:
        if instance:
            return None  # statistics of one sample: the same in both modes
        owner_module = node.module
        kept = hand_written({owner_module: module}) if module is not None else {}
        tracked = bool(kept) or next(iterate_refs(bound.get("running_mean")), None) is not None
        return Norm(owner_module, "batch_norm", channels, bool(training) or not tracked, tracked)
    name, size = owner
    kind = "instance_norm" if instance else "batch_norm"
    return Norm(name, kind, size or channels, bool(training), True)


def _statistics_owner(graph: Graph, ref: int | None) -> tuple[tuple[str, int] | None, bool]:
    """The module path behind a running-mean argument, its size, and whether it was repeated per sample."""
    repeated = False
    for _ in range(_TRANSPARENT_STEPS):
        if ref is None:
            return None, False
        node = graph.nodes[ref]
        if node.target is not None:
            size = (node.shape or (0,))[0] if node.shape else 0
            return (node.target.rpartition(".")[0], size), repeated
        name = graph.infos[ref].name
        repeated = repeated or name == "repeat"
        if node.role != "call" or name not in VIEWS:
            return None, False
        ref = next(iterate_refs(node.args), None)
    return None, False


def _composite(
    graph: Graph, name: str, module: nn.Module, statistics: set[int]
) -> list[tuple[int, Norm, int | None]]:
    """Calls of a hand-written norm: where, inside the module, a statistic meets the signal.

    The nodes that compute its statistics are added to `statistics`.
    """
    mean, variance = hand_written({name: module})[name]
    buffers = {f"{name}.{key}" if name else key for key in (mean, variance) if key is not None}
    channels = module._buffers[variance].numel()  # type: ignore[union-attr]
    kept: set[int] = {i for i, node in enumerate(graph.nodes) if node.target in buffers}
    reduced: set[int] = set()
    done: set[int] = set()
    found: list[tuple[int, Norm, int | None]] = []
    for index, node in enumerate(graph.nodes):
        if node.role != "call" or not (node.module == name or node.module.startswith(name + ".") or not name):
            continue
        operands = graph.operands[index]
        info = graph.infos[index]
        from_reduced = [o for o in operands if o.node in reduced]
        from_kept = [o for o in operands if o.node in kept]
        plain = [o for o in operands if graph.signal[o.node] and o.node not in reduced and o.node not in kept]
        into_buffer = bool(info.writes) and any(
            o.argument in info.writes and o.node in kept for o in operands
        )
        if into_buffer:
            kept.add(index)
        elif plain and (from_reduced or from_kept):
            if any(o.node in done for o in plain):
                done.add(index)
                continue
            done.add(index)
            statistic = bool(from_reduced)
            found.append((index, Norm(name, "hand_written", channels, statistic, True), plain[0].node))
        elif from_reduced and not plain:
            reduced.add(index)
        elif from_kept and not plain:
            kept.add(index)
        elif plain and info.name in STATISTICS and graph.elements(index) == channels:
            reduced.add(index)
        elif any(o.node in done for o in plain):
            done.add(index)
    if found:
        statistics |= reduced | {index for index in kept if graph.nodes[index].role == "call"}
    return found
