"""Whether noise keeps the mean: what it multiplies a signal with on average, compared with evaluation."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from functools import cached_property

from varshift.flow._classify import Draws, Site
from varshift.flow._evaluate import Evaluator
from varshift.flow._factors import Factors
from varshift.flow._graph import Graph
from varshift.flow._ops import bind
from varshift.flow._vocabulary import KEEPING, PRODUCTS, QUOTIENTS, SCALES, VIEWS, own_name

_KINDS = frozenset(
    {
        "dropout",
        "channel_dropout",
        "drop_path",
        "drop_block",
        "gaussian",
        "uniform",
        "attention_dropout",
        "recurrent_dropout",
        "weight_dropout",
    }
)
_MOST_NODES = 16  # that a factor is followed through after the noise
_STANDARD_ERRORS = 4.0  # of a mean that had to be sampled
_DIGITS = 4


def scales(graph: Graph, evaluator: Evaluator) -> Counter[float]:
    """The constants that signals and weights are multiplied with in a graph, and how often each."""
    found: Counter[float] = Counter()
    for index, info in enumerate(graph.infos):
        if info.name not in PRODUCTS or graph.nodes[index].role != "call":
            continue
        bound = bind(graph.nodes[index])
        moving = [o for o in graph.operands[index] if graph.signal[o.node] or graph.learned[o.node]]
        if len(moving) != 1 or moving[0].argument not in ("self", "other"):
            continue
        other = "other" if moving[0].argument == "self" else "self"
        if own_name(info.name) in QUOTIENTS and other == "self":
            continue
        level = bound.get(other)
        fixed = next((o.node for o in graph.operands[index] if o.argument == other), None)
        value = evaluator.constant(fixed) if fixed is not None else level
        if isinstance(value, (int, float)) and not isinstance(value, bool) and value:
            factor = 1 / value if own_name(info.name) in QUOTIENTS else value
            found[round(float(factor), _DIGITS)] += 1
    return found


def _is_factor(site: Site) -> bool:
    """Whether a noise is written by hand and multiplies its signal."""
    return not (site.operator or site.additive or site.part) and site.kind in _KINDS


class Rescaling:
    """Answers for the noise sites of one graph in train mode.

    Args:
        graph: The graph.
        evaluator: Evaluates its noise.
        draws: What is known of its random numbers.
        evaluation: The graph of the same network in eval mode.
        deployed: Evaluates its constants.
    """

    def __init__(
        self, graph: Graph, evaluator: Evaluator, draws: Draws, evaluation: Graph, deployed: Evaluator
    ) -> None:
        self._graph, self._evaluator, self._draws = graph, evaluator, draws
        self._evaluation, self._deployed = evaluation, deployed
        self._factors = Factors(graph)

    @cached_property
    def _instead(self) -> list[float]:
        """What evaluation alone multiplies with: it may be there in place of a division in training."""
        only = scales(self._evaluation, self._deployed) - scales(self._graph, self._evaluator)
        return [*only, 1.0]

    def mean(self, site: Site) -> float | None:
        """See `NoiseSite.mean_factor`.

        A factor is complete after the multiplications that follow the noise, or relative to a signal before
        those that precede it: ``x / keep * mask``, ``x * mask / keep``. Of all readings the one that is
        nearest to 1 is taken.
        """
        if not _is_factor(site):
            return None
        best: float | None = None
        for factor, error in self._readings(site):
            for instead in self._instead:
                value, spread = factor / instead, error / abs(instead)
                if abs(value - 1) <= _STANDARD_ERRORS * spread:
                    return 1.0
                if value > 0 and (best is None or abs(math.log(value)) < abs(math.log(best))):
                    best = value
        return None if best is None else float(f"{best:.6g}")

    def signal(self, site: Site) -> int | None:
        """See `NoiseSite.signal`."""
        if site.operator:
            return None
        graph = self._graph
        carries = graph.signal if graph.signal[site.node] else graph.learned
        read = {operand.node for operand in graph.operands[site.node] if operand.argument}
        own = {node for node in read if carries[node]}
        return own.pop() if len(own) == 1 else None

    def own(self, site: Site) -> float | None:
        """See `NoiseSite.own_factor`; a sampled one is only known where `mean` is the same."""
        signal, whole = self.signal(site), self.mean(site)
        if signal is None or whole is None:
            return None
        sources = self._draws.sources(site.sources)
        distribution = self._evaluator.distribution(site.node, sources, {signal: 1.0})
        if distribution is None or not math.isfinite(distribution.mean):
            return None
        if abs(distribution.mean - whole) <= _STANDARD_ERRORS * distribution.error:
            return whole
        return None if distribution.error else float(f"{distribution.mean:.6g}")

    def _readings(self, site: Site) -> Iterator[tuple[float, float]]:
        """Means of the factor between signals before the noise and values after it, with their errors."""
        sources = self._draws.sources(site.sources)
        for base in self._before(site):
            for node in self._after(site):
                distribution = self._evaluator.distribution(node, sources, {base: 1.0})
                if distribution is not None and math.isfinite(distribution.mean):
                    yield distribution.mean, distribution.error

    def _before(self, site: Site) -> list[int]:
        units = list(self._factors.units(site.node)[1:])
        if units:
            return units
        signal = self.signal(site)
        return list(self._factors.units(signal)) if signal is not None else []

    def _after(self, site: Site) -> list[int]:
        graph = self._graph
        found = [site.node]
        for node in found:
            for user in graph.users[node]:
                name = own_name(graph.infos[user].name)
                scaled = name in SCALES or name in KEEPING or name in VIEWS
                alone = sum(graph.signal[operand.node] for operand in graph.operands[user]) <= 1
                if scaled and alone and user not in found and len(found) < _MOST_NODES:
                    found.append(user)
        return found
