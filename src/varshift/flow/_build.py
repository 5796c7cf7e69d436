"""From raw nodes to a Flow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any

import numpy as np
from torch import Tensor, nn

from varshift._sites import Source
from varshift.flow._census import HandNorm, recognise
from varshift.flow._classify import Site
from varshift.flow._decisions import Decision, find_decisions, number_decisions
from varshift.flow._drops import DropAnalysis
from varshift.flow._evaluate import Evaluator
from varshift.flow._graph import Graph, build_graph
from varshift.flow._naming import NoiseCall, Numbering
from varshift.flow._noise import NoiseFinder
from varshift.flow._norms import Norm, find_norms
from varshift.flow._raw import RawNode, Recording, Trace, map_refs
from varshift.flow._reach import Reach, mixes_units, propagate, summands
from varshift.flow._rescaling import Rescaling
from varshift.flow._slots import slots
from varshift.flow._source import SourceFinder
from varshift.flow._types import CaptureMethod, Draw, Flow, Mode, Node, NoiseSite, NormSite, Path, Ref
from varshift.flow._vocabulary import ACTIVATIONS, CONCATENATIONS, POOLS, PRODUCTS, VIEWS, own_name

_CHANCE = (
    "A random number is read as a Python number; what it decides, such as skipping a layer, is not seen."
)
_CLASSES: tuple[Path, Path, Path] = ("direct", "weight", "join")


@dataclass(frozen=True, slots=True)
class Traced:
    """One mode of a network as a tracer saw it.

    Attributes:
        recording: What it saw.
        method: How it was traced.
        limits: What the tracer could not see.
        by_chance: Whether Python's or NumPy's random numbers were drawn.
    """

    recording: Recording
    method: CaptureMethod
    limits: tuple[str, ...] = ()
    by_chance: bool = False


def build_flows(traced: Mapping[Mode, Traced], model: nn.Module, names: dict[str, str]) -> dict[Mode, Flow]:
    """Understands what a tracer saw of a network in one mode or in both.

    Args:
        traced: What it saw, by mode.
        model: The module it was traced from (or its copy): its class names and constants are read.
        names: Canonical module names (see `canonical_names`).
    """
    graphs = {mode: build_graph(one.recording.nodes) for mode, one in traced.items()}
    tensors = {name: slot.tensor for name, slot in slots(model, names).items()}
    replaced = traced["train"].recording.replaced if "train" in traced else {}
    norms = recognise(graphs.get("train"), graphs.get("eval"), model, names, tensors, replaced)
    numbering = Numbering()
    flows: dict[Mode, Flow] = {}
    for mode, one in traced.items():
        known = norms if mode == "train" else tuple(replace(norm, computes=frozenset()) for norm in norms)
        evaluation = graphs.get("eval") if mode == "train" else None
        flows[mode] = _build(graphs[mode], one, model, mode, known, numbering, evaluation)
    return flows


def _build(
    graph: Graph,
    traced: Traced,
    model: nn.Module,
    mode: Mode,
    hand: tuple[HandNorm, ...],
    numbering: Numbering,
    evaluation: Graph | None,
) -> Flow:
    recording, limits = traced.recording, traced.limits
    modules = dict(model.named_modules())
    recurrent = frozenset(name for name, module in modules.items() if isinstance(module, nn.RNNBase))
    tensors: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    evaluator = Evaluator(graph, tensors)
    finder = NoiseFinder(graph, evaluator, recurrent)
    sites = finder.run()
    rescaling: Rescaling | None = None
    if evaluation is not None:
        rescaling = Rescaling(graph, evaluator, finder.draws, evaluation, Evaluator(evaluation, tensors))
    norms, norm_calls, statistics = find_norms(graph, modules, hand, mode)
    tracked = {index for index, norm in norm_calls.items() if norms[norm].tracked}
    reach = propagate(graph, sites, tracked, statistics)
    builder = _Builder(graph, modules, sites, norms, norm_calls, reach, finder.random)
    numbers = _numbers(graph, sites, finder.silent, numbering)
    decisions = find_decisions(graph, finder, evaluator, recording.host_draws)
    by_chance = any(decision.acts and decision.sources for decision in decisions)
    if by_chance:
        limits = (*limits, _CHANCE)
    return Flow(
        mode=mode,
        method=traced.method,
        nodes=builder.nodes(frozenset(finder.random)),
        noises=builder.noises(numbers, rescaling),
        norms=builder.norm_sites(),
        limits=limits,
        written=recording.written,
        writes_input=recording.writes_input,
        by_chance=by_chance or traced.by_chance,
        number_types=_number_types(graph),
        decisions=builder.decisions(decisions, number_decisions(decisions, numbering)),
    )


def _number_types(graph: Graph) -> tuple[str, ...]:
    types = {node.dtype for node in graph.nodes if node.dtype is not None and node.dtype.is_floating_point}
    return tuple(sorted(str(dtype).removeprefix("torch.") for dtype in types))


def _numbers(
    graph: Graph, sites: list[Site], silent: list[tuple[int, str]], numbering: Numbering
) -> list[int]:
    """The number of each site in its name."""
    calls = [(site.node, site.kind, site.operator) for site in sites]
    calls += [(index, kind, True) for index, kind in silent]
    order = sorted(range(len(calls)), key=lambda place: calls[place][0])
    described = []
    for place in order:
        index, kind, operator = calls[place]
        node = graph.nodes[index]
        trace = node.trace
        way, inside = (trace.way(), trace.place()) if trace is not None else ("", "")
        described.append(NoiseCall(node.module, kind, operator, way, inside))
    by_place = dict(zip(order, numbering.number(described), strict=True))
    return [by_place[place] for place in range(len(sites))]


class _Builder:
    def __init__(
        self,
        graph: Graph,
        modules: dict[str, nn.Module],
        sites: list[Site],
        norms: list[Norm],
        norm_calls: dict[int, int],
        reach: Reach,
        random: list[int],
    ) -> None:
        self._graph = graph
        self._modules = modules
        self._sites = sites
        self._norms = norms
        self._norm_calls = norm_calls
        self._reach = reach
        self._random = random
        self._finder = SourceFinder(modules)

    def _class(self, module: str) -> str:
        found = self._modules.get(module)
        return type(found).__name__ if found is not None else ""

    def _source(self, index: int) -> Source | None:
        """The line of an operation."""
        node = self._graph.nodes[index]
        return self._finder.operation(node.trace, node.module)

    def _norm_source(self, index: int, name: str) -> Source | None:
        module = self._modules.get(name)
        whole = isinstance(module, nn.modules.batchnorm._NormBase) or (
            module is not None and next(module.children(), None) is None
        )
        return self._finder.line(self._graph.nodes[index].trace, name if whole else "")

    def nodes(self, random: frozenset[int]) -> tuple[Node, ...]:
        """All operations as plain data."""
        noise = {site.node for site in self._sites}
        built = []
        for index, raw in enumerate(self._graph.nodes):
            if index in noise:
                kind = "noise"
            elif index in random:
                kind = "random"
            else:
                kind = self._kind(index)
            source = None
            if raw.role == "call":
                norm = self._norm_calls.get(index)
                source = (
                    self._source(index) if norm is None else self._norm_source(index, self._norms[norm].name)
                )
            args, kwargs = self._as_they_are(index, raw)
            built.append(
                Node(
                    index=index,
                    kind=kind,
                    op=own_name(self._graph.infos[index].name),
                    module=raw.module,
                    cls=self._class(raw.module),
                    source=source,
                    inputs=self._graph.inputs[index],
                    shape=raw.shape,
                    args=args,
                    kwargs=kwargs,
                    target=raw.target,
                    value=raw.value,
                    overload=self._graph.infos[index].text if raw.role == "call" else "",
                    trace=raw.trace,
                )
            )
        return tuple(built)

    def _as_they_are(self, index: int, raw: RawNode) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        """Arguments whose tensors are named by the last operation that wrote to them, as the inputs are.

        A recorded tensor keeps the name of the operation that made it. Only whole tensors change their name:
        a view of the same memory is another tensor.
        """
        latest = {
            operand.ref: operand.node
            for operand in self._graph.operands[index]
            if operand.ref != operand.node and self._graph.nodes[operand.node].args[:1] == (Ref(operand.ref),)
        }
        if not latest:
            return raw.args, raw.kwargs

        def current(ref: Ref) -> Ref:
            return Ref(latest.get(ref.index, ref.index))

        return map_refs(raw.args, current), map_refs(raw.kwargs, current)

    def _kind(self, index: int) -> str:
        graph = self._graph
        role, name = graph.nodes[index].role, graph.infos[index].name
        if role != "call":
            return role
        if index in self._norm_calls:
            return "norm"
        if mixes_units(graph, index):
            return "weight" if self._multiplies(index) else "other"
        if summands(graph, index):
            return "join"
        if name in PRODUCTS and len(graph.signals(index)) > 1:
            return "product"
        if name in CONCATENATIONS:
            return "concat"
        if name in POOLS or "pool" in name:
            return "pool"
        if name in VIEWS:
            return "view"
        return "activation" if name in ACTIVATIONS else "other"

    def _multiplies(self, index: int) -> bool:
        name = self._graph.infos[index].name
        return not any(word in name for word in ("norm", "softmax", "cumsum"))

    def noises(self, numbers: list[int], rescaling: Rescaling | None) -> tuple[NoiseSite, ...]:
        """The noise sites with everything that lies behind them."""
        near = self._near()
        reached = self._reached()
        pools = self._pools()
        drops: DropAnalysis | None = None
        built = []
        for position, site in enumerate(self._sites):
            raw = self._graph.nodes[site.node]
            name = raw.module
            ways = near[position]
            best = min(ways, key=lambda norm: _CLASSES.index(ways[norm]), default=None)
            dropped = None
            if site.kind == "drop_path":
                drops = drops or DropAnalysis(self._graph, self._reach.carried, self._norm_calls)
                dropped = drops.drops(position, site)
            built.append(
                NoiseSite(
                    name=name,
                    cls=self._class(name),
                    kind=site.kind,
                    rate=site.rate,
                    source=self._source(site.node),
                    node=site.node,
                    reaches=reached[position],
                    nearest=best,
                    path=ways[best] if best is not None else "none",
                    near=ways,
                    pools=pools[position],
                    drops=dropped,
                    additive=site.additive,
                    ordinal=numbers[position],
                    mean_factor=rescaling.mean(site) if rescaling is not None else None,
                    signal=rescaling.signal(site) if rescaling is not None else None,
                    own_factor=rescaling.own(site) if rescaling is not None else None,
                    traces=self._traces(site),
                    drawn=self._drawn(self._sources(site) or (site.node,)),
                )
            )
        return tuple(built)

    def decisions(self, decisions: list[Decision], numbers: list[int]) -> tuple[NoiseSite, ...]:
        """The choices that can turn out in more than one way, as plain data."""
        return tuple(
            NoiseSite(
                name=decision.module,
                cls=self._class(decision.module),
                kind=decision.kind,
                rate=decision.rate,
                source=self._finder.operation(decision.trace, decision.module),
                node=decision.node,
                ordinal=number,
                traces=(decision.trace,) if decision.trace is not None else (),
                drawn=self._drawn(decision.sources),
            )
            for decision, number in zip(decisions, numbers, strict=True)
            if decision.acts
        )

    def _sources(self, site: Site) -> tuple[int, ...]:
        return tuple(self._random[position] for position in _positions(site.sources))

    def _drawn(self, nodes: Sequence[int]) -> tuple[Draw, ...]:
        raw = self._graph.nodes
        return tuple(
            Draw(raw[node].module, self._class(raw[node].module), node, raw[node].trace) for node in nodes
        )

    def _traces(self, site: Site) -> tuple[Trace, ...]:
        nodes = self._graph.nodes
        places = dict.fromkeys((site.node, *site.joins))
        return tuple(trace for place in places if (trace := nodes[place].trace) is not None)

    def _near(self) -> list[dict[str, Path]]:
        near: list[dict[str, Path]] = [{} for _ in self._sites]
        for index in sorted(self._reach.arrivals):
            name = self._norms[self._norm_calls[index]].name
            for path, bits in zip(_CLASSES, self._reach.arrivals[index], strict=True):
                for position in _positions(bits):
                    known = near[position].get(name)
                    if known is None or _CLASSES.index(path) < _CLASSES.index(known):
                        near[position][name] = path
        return near

    def _reached(self) -> list[tuple[str, ...]]:
        if not (self._sites and self._reach.norms):
            return [() for _ in self._sites]
        arriving: dict[str, int] = {}  # noise in the inputs of all calls of a norm
        for index in sorted(self._reach.norms):
            name = self._norms[self._norm_calls[index]].name
            arriving[name] = arriving.get(name, 0) | self._reach.norms[index]
        width = (len(self._sites) + 7) // 8
        rows = b"".join(bits.to_bytes(width, "little") for bits in arriving.values())
        table = np.frombuffer(rows, np.uint8).reshape(len(arriving), width)
        columns = np.unpackbits(table, axis=1, bitorder="little").T
        return [tuple(compress(arriving, columns[place].tolist())) for place in range(len(self._sites))]

    def _pools(self) -> list[tuple[tuple[str, Source | None, int], ...]]:
        pools: list[list[tuple[str, Source | None, int]]] = [[] for _ in self._sites]
        for index in sorted(self._reach.pools):
            bits, window = self._reach.pools[index]
            for position in _positions(bits):
                pools[position].append((self._graph.nodes[index].module, self._source(index), window))
        return [tuple(found) for found in pools]

    def norm_sites(self) -> tuple[NormSite, ...]:
        """The norm sites as plain data."""
        return tuple(
            NormSite(
                name=norm.name,
                cls=self._class(norm.name),
                kind=norm.kind,
                channels=norm.channels,
                source=self._norm_source(norm.calls[0], norm.name),
                calls=tuple(norm.calls),
                shapes=tuple(norm.shapes),
                batch_statistics=norm.batch_statistics,
                tracked=norm.tracked,
                states=norm.states,
                ordinal=int(norm.name.rpartition("#")[2]) if "#" in norm.name else 1,
            )
            for norm in self._norms
        )


def _positions(bits: int) -> list[int]:
    found = []
    while bits:
        lowest = bits & -bits
        found.append(lowest.bit_length() - 1)
        bits ^= lowest
    return found
