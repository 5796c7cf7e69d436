"""How noise travels: which norms it reaches, through what, and which max pools read it first.

Everything is one pass over the nodes with one bit per noise site, so their number hardly matters.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from varshift.flow._classify import Site
from varshift.flow._graph import Graph, elements
from varshift.flow._norms import norm_input
from varshift.flow._ops import OpInfo, bind
from varshift.flow._raw import iterate_refs
from varshift.flow._vocabulary import (
    ACTIVATIONS,
    CONCATENATIONS,
    MAX_POOLS,
    NORMALISING,
    REDUCTIONS,
    SUMS,
    VIEWS,
)

_POOLED_KINDS = frozenset({"dropout", "alpha_dropout", "gaussian", "uniform"})
_BIASED_SUMS = frozenset({"addmm", "baddbmm", "addbmm", "addmv", "index_add", "scatter_add"})


@dataclass(slots=True)
class Reach:
    """Where noise goes; every bit set has one bit per noise site.

    Attributes:
        carried: For each node, the noise in its value.
        arrivals: For each norm call, the noise that arrives without another norm in between, as bit sets of
            the classes direct, weight and join.
        norms: For each norm call, all noise in its input.
        pools: Noise read by each max pool without weights in between, with the number of pooled elements.
    """

    carried: list[int]
    arrivals: dict[int, tuple[int, int, int]]
    norms: dict[int, int]
    pools: dict[int, tuple[int, int]]


def mixes_units(graph: Graph, index: int) -> bool:
    """Whether an operation mixes units; an unknown operator that reads a weight matrix counts as well."""
    info = graph.infos[index]
    if info.mixes:
        return True
    known = ACTIVATIONS | VIEWS | SUMS
    if info.name in known or info.text.startswith("aten.") or graph.nodes[index].role != "call":
        return False
    return any(
        graph.learned[operand.node]
        and not graph.signal[operand.node]
        and len(graph.nodes[operand.node].shape or ()) >= 2
        for operand in graph.operands[index]
    )


def summands(graph: Graph, index: int) -> list[list[int]]:
    """The signals that a sum adds up, each as the nodes it is made of; empty for anything but a sum."""
    info = graph.infos[index]
    if graph.nodes[index].role != "call":
        return []
    if info.name in SUMS or info.name in _BIASED_SUMS:
        groups = _by_argument(graph, index, info)
    elif info.name in REDUCTIONS:
        groups = _stacked(graph, index)
    else:
        return []
    return groups if len(groups) > 1 else []


def _by_argument(graph: Graph, index: int, info: OpInfo) -> list[list[int]]:
    first: list[int] = []
    second: list[int] = []
    for operand in graph.signals(index):
        if operand.argument in ("weight", "value", "index"):
            continue
        (first if operand.argument in ("self", "input", "") else second).append(operand.node)
    return [group for group in (first, second) if group]


def _stacked(graph: Graph, index: int) -> list[list[int]]:
    """A stack of signals that is summed over the new dimension is a sum of those signals."""
    source = next(iter(graph.inputs[index]), None)
    if source is None or graph.infos[source].name not in ("stack", "vstack", "dstack", "hstack"):
        return []
    rank = len(graph.nodes[source].shape or ())
    stacked = bind(graph.nodes[source]).get("dim", 0)
    over = bind(graph.nodes[index]).get("dim")
    dims = over if isinstance(over, (list, tuple)) else [over]
    if (
        rank
        and over is not None
        and stacked % rank not in [int(dim) % rank for dim in dims if dim is not None]
    ):
        return []
    return [[operand.node] for operand in graph.signals(source)]


def propagate(graph: Graph, sites: list[Site], norm_calls: Collection[int], statistics: set[int]) -> Reach:
    """Carries every site's noise through the graph.

    Args:
        graph: The graph.
        sites: The noise sites.
        norm_calls: Nodes that normalise with running statistics.
        statistics: Nodes inside a norm that compute its statistics: noise leaves the norm by its output only.
    """
    starts: dict[int, int] = {}
    exempt: dict[int, int] = {}
    pooled = 0
    for position, site in enumerate(sites):
        starts[site.node] = starts.get(site.node, 0) | 1 << position
        for node in site.joins:
            exempt[node] = exempt.get(node, 0) | 1 << position
        if site.kind in _POOLED_KINDS:
            pooled |= 1 << position
    count = len(graph.nodes)
    reach = Reach([0] * count, {}, {}, {})
    direct, weight, join, unpooled = [0] * count, [0] * count, [0] * count, [0] * count
    for index in range(count):
        inputs = graph.inputs[index]
        carried = d = w = j = p = 0
        for source in inputs:
            carried |= reach.carried[source]
            d |= direct[source]
            w |= weight[source]
            j |= join[source]
            p |= unpooled[source]
        started = starts.get(index, 0)
        if not (carried or started):
            continue
        reach.carried[index] = carried | started
        if index in statistics:
            continue
        if index in norm_calls:
            _arrive(graph, reach, index, (direct, weight, join))
            unpooled[index] = p
            continue
        groups = summands(graph, index)
        if groups:
            lone = _alone(reach.carried, groups) & ~exempt.get(index, 0)
            j |= (d | w) & lone
            d &= ~lone
            w &= ~lone
            p &= ~lone
        d |= started
        p |= started & pooled
        mixes = mixes_units(graph, index)
        if mixes:
            w |= d
            d = 0
        direct[index] = d
        weight[index] = w & ~d
        join[index] = j & ~(d | w)
        unpooled[index] = _after(graph, index, p, mixes, reach)
    return reach


def _arrive(graph: Graph, reach: Reach, index: int, classes: tuple[list[int], list[int], list[int]]) -> None:
    sets = [0, 0, 0]
    everything = 0
    for source in norm_input(graph, index):
        everything |= reach.carried[source]
        for place, values in enumerate(classes):
            sets[place] |= values[source]
    d, w, j = sets
    reach.arrivals[index] = (d, w & ~d, j & ~(d | w))
    reach.norms[index] = everything


def _alone(carried: list[int], groups: list[list[int]]) -> int:
    """Noise that is in some but not in all of the signals of a sum."""
    union, common = 0, -1
    for group in groups:
        bits = 0
        for node in group:
            bits |= carried[node]
        union |= bits
        common &= bits
    return union & ~common


def _after(graph: Graph, index: int, bits: int, mixes: bool, reach: Reach) -> int:
    """Noise that is still as it was drawn, unit by unit, after a node; notes the max pools that read it."""
    if not bits:
        return 0
    info = graph.infos[index]
    name = info.name
    if name in MAX_POOLS:
        window = _window(graph, index)
        if window > 1:
            reach.pools[index] = (bits, window)
            return 0
        return bits
    transparent = name in ACTIVATIONS or name in VIEWS or name in CONCATENATIONS
    return bits if transparent and (not mixes or name in NORMALISING) else 0


def _window(graph: Graph, index: int) -> int:
    bound = bind(graph.nodes[index])
    kernel = bound.get("kernel_size")
    source = next(iterate_refs(graph.nodes[index].args), None)
    shape = (graph.nodes[source].shape if source is not None else None) or ()
    if kernel is not None:
        sizes = list(kernel) if isinstance(kernel, (list, tuple)) else [kernel]
        rank = next((int(c) for c in graph.infos[index].name if c.isdigit()), len(sizes))
        return elements(tuple(sizes * rank if len(sizes) == 1 else sizes))
    result = graph.elements(index)
    return elements(shape) // result if result else 0
