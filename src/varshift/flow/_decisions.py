"""Choices that Python takes from random numbers: layer drop, a width, the order of layers."""

from __future__ import annotations

from dataclasses import dataclass

from varshift.flow._evaluate import Distribution, Evaluator
from varshift.flow._graph import Graph
from varshift.flow._naming import NoiseCall, Numbering
from varshift.flow._noise import NoiseFinder
from varshift.flow._raw import HostDraw, Trace
from varshift.flow._vocabulary import COMPARISONS

# Random operators of whose numbers a given share lies below a threshold.
_CHANCES = frozenset({"rand", "rand_like", "uniform", "bernoulli"})
_BELOW = {"lt": True, "le": True, "gt": False, "ge": False}
_RESOLVED = frozenset({"resolve_conj", "resolve_neg"})  # NumPy reads through them


@dataclass(frozen=True, slots=True)
class Decision:
    """A random number that Python reads.

    Attributes:
        node: The operation that hands it to Python; for a number of Python's own the next operation.
        kind: ``"layer_drop"`` or ``"decision"``, see `NoiseSite.kind`.
        rate: See `NoiseSite.rate`.
        module: Path of the module at work.
        trace: What led to the reading.
        sources: The nodes that draw what it is made of, none for a number of Python's own.
        acts: Whether it can turn out in more than one way.
    """

    node: int
    kind: str
    rate: float | None
    module: str
    trace: Trace | None
    sources: tuple[int, ...] = ()
    acts: bool = True


def find_decisions(
    graph: Graph, finder: NoiseFinder, evaluator: Evaluator, drawn: list[HostDraw]
) -> list[Decision]:
    """All choices of one pass in order of execution, those included that can turn out in one way only.

    Args:
        graph: The operations.
        finder: What is known of the noise among them.
        evaluator: Evaluates random numbers of that graph.
        drawn: The numbers that Python itself drew.
    """
    decisions = [_drawn_by_python(draw) for draw in drawn]
    read: set[int] = set()
    for index, node in enumerate(graph.nodes):
        if node.role != "call" or not _read_by_host(graph, index):
            continue
        for source in graph.inputs[index]:
            if finder.is_noise(source) and source not in read:
                read.add(source)
                decisions.append(_read(graph, finder, evaluator, index, source))
    return sorted(decisions, key=lambda decision: decision.node)


def number_decisions(decisions: list[Decision], numbering: Numbering) -> list[int]:
    """The number of each in its name."""
    calls = []
    for decision in decisions:
        trace = decision.trace
        way, place = (trace.way(), trace.place()) if trace is not None else ("", "")
        calls.append(NoiseCall(decision.module, decision.kind, True, way, place))
    return numbering.number(calls)


def _read_by_host(graph: Graph, index: int) -> bool:
    """Whether an operation hands values to Python: it returns no tensor, or is what NumPy reads through."""
    return graph.nodes[index].dtype is None or graph.infos[index].name in _RESOLVED


def _read(graph: Graph, finder: NoiseFinder, evaluator: Evaluator, index: int, source: int) -> Decision:
    sources = finder.sources(source)
    distribution = evaluator.distribution(source, sources) if graph.elements(source) == 1 else None
    exact = distribution is not None and not distribution.sampled
    chance = exact and all(graph.infos[node].name in _CHANCES for node in sources)
    node = graph.nodes[index]
    return Decision(
        node=index,
        kind="layer_drop" if chance else "decision",
        rate=_share_below(graph, source, distribution) if chance else None,
        module=node.module,
        trace=node.trace,
        sources=tuple(sources),
        acts=not (exact and distribution is not None and distribution.std == 0),
    )


def _share_below(graph: Graph, source: int, distribution: Distribution | None) -> float | None:
    """How likely a number is to lie below what it is compared with; None where it is not compared."""
    name = graph.infos[source].name
    below = _BELOW.get(name) if name in COMPARISONS else None
    if below is None or distribution is None or distribution.probability is None:
        return None
    return round(1 - distribution.probability if below else distribution.probability, 6)


def _drawn_by_python(draw: HostDraw) -> Decision:
    kind = "layer_drop" if draw.function == "random" else "decision"
    return Decision(draw.node, kind, None, draw.trace.module, draw.trace)
