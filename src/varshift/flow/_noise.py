"""Noise sites: where random numbers meet the signal, of what kind, and how strong."""

from __future__ import annotations

import math

from varshift.flow._classify import REPLACEMENTS, Classifier, Draws, Site
from varshift.flow._evaluate import Distribution, Evaluator
from varshift.flow._graph import Graph, Operand
from varshift.flow._ops import bind
from varshift.flow._vocabulary import (
    ACTIVATIONS,
    COMPARISONS,
    DROPOUT,
    INDEXING,
    PRODUCTS,
    RANDOM,
    RECURRENT,
    SUMS,
    VIEWS,
    own_name,
)

_ADDITIVE = frozenset({"add", "sub", "subtract", "rsub"})
_SELECTIONS = frozenset({"index", "_unsafe_index", "masked_select"})
_STEPS_TO_MASK = 8


class NoiseFinder:
    """Walks a graph once and collects its noise sites."""

    def __init__(self, graph: Graph, evaluator: Evaluator, recurrent_modules: frozenset[str]) -> None:
        self._graph = graph
        self._evaluator = evaluator
        self.sites: list[Site] = []
        self.silent: list[tuple[int, str]] = []  # operators that would make noise with another rate or mode
        self.draws = Draws()
        self.random, self._noise = self.draws.random, self.draws.bits
        self._classifier = Classifier(graph, evaluator, self.draws, recurrent_modules)
        self._chain: list[int | None] = []  # the site a signal comes from with nothing but elementwise work

    def run(self) -> list[Site]:
        """Finds all sites, in order of execution."""
        for index in range(len(self._graph.nodes)):
            before = len(self.sites)
            merged = self._visit(index)
            self._noise.append(self._pure_noise(index))
            if merged is not None:
                self._chain.append(merged)
            elif len(self.sites) > before:
                fresh = not self._graph.infos[index].mixes
                self._chain.append(len(self.sites) - 1 if fresh else None)
            else:
                self._chain.append(self._carried_chain(index))
        self.sites = sorted((site for site in self.sites if not site.absorbed), key=lambda site: site.node)
        for site in self.sites:
            if site.part and site.rate is not None and not site.additive:
                site.rate = None  # a factor of mean zero is no noise around the signal, whatever its spread
        return self.sites

    def is_noise(self, index: int) -> bool:
        """Whether a value is random and owes nothing to the signal."""
        return bool(self._noise[index])

    def sources(self, index: int) -> list[int]:
        """The nodes that draw the random numbers of which a value is made, if it is noise."""
        return self.draws.sources(self._noise[index])

    def _pure_noise(self, index: int) -> int:
        graph = self._graph
        if graph.signal[index] or any(site.node == index for site in self.sites[-1:]):
            return 0
        bits = 0
        for source in graph.inputs[index]:
            bits |= self._noise[source]
        if self.random and self.random[-1] == index:
            bits |= 1 << (len(self.random) - 1)
        elif bits and graph.infos[index].name in PRODUCTS and self._times_zero(index):
            return 0
        return bits

    def _times_zero(self, index: int) -> bool:
        """Noise times zero is no noise: a mask on the first state of a recurrence, say."""
        fixed = [
            operand.node
            for operand in self._graph.operands[index]
            if not (self._noise[operand.node] or self._graph.learned[operand.node])
        ]
        return any(self._evaluator.constant(node) == 0 for node in fixed)

    def _carried_chain(self, index: int) -> int | None:
        graph = self._graph
        name = graph.infos[index].name
        if name not in ACTIVATIONS and name not in VIEWS:
            return None
        found: int | None = None
        for source in graph.inputs[index]:
            if not graph.signal[source]:
                continue
            chain = self._chain[source]
            if chain is None or (found is not None and chain != found):
                return None
            found = chain
        return found

    def _visit(self, index: int) -> int | None:
        """Handles one node; returns the earlier site that it belongs to, if it does."""
        graph = self._graph
        node = graph.nodes[index]
        if node.role != "call":
            return None
        info = graph.infos[index]
        if info.name in RANDOM:
            if graph.signal[index]:
                self._add(index, "sampling", None)
            else:
                self.random.append(index)
            return None
        if self._explicit(index):
            return None
        noisy = [operand for operand in graph.operands[index] if self._noise[operand.node]]
        if not noisy:
            return self._sum_of_parts(index)
        if not graph.signal[index]:
            self._factor_of_weight(index, noisy)
            return None
        sources = 0
        for operand in noisy:
            sources |= self._noise[operand.node]
        signals = graph.signals(index)
        for operand in signals:
            chain = self._chain[operand.node]
            if chain is not None and self.sites[chain].sources & sources:
                self._merge(chain, index, noisy[0])
                return chain
        if info.name in INDEXING and self._reorders_again(index, signals, sources):
            return None
        self._join(index, noisy[0], sources)
        return None

    def _explicit(self, index: int) -> bool:
        """Operators that carry their own noise."""
        graph = self._graph
        info = graph.infos[index]
        bound = bind(graph.nodes[index])
        if info.name in DROPOUT:
            rate = float(bound.get("p", 0))
            active = bound.get("train", True) is not False and rate > 0
            source = next(iter(graph.operands[index])).node
            if graph.signal[source]:
                return self._operator(index, self._dropout_kind(index, source), rate, active)
            if graph.learned[source]:
                return self._operator(index, "weight_dropout", rate, active)
            if active:
                self.random.append(index)
            return active
        if not graph.signal[index]:
            return False
        if info.name in RECURRENT and "dropout" in bound:
            rate = float(bound["dropout"] or 0)
            layered = int(bound.get("num_layers", 2)) > 1
            return self._operator(
                index, "recurrent_dropout", rate, bool(bound.get("train")) and rate > 0 and layered
            )
        if info.name in ("rrelu", "rrelu_with_noise"):
            low, high = float(bound.get("lower", 0.125)), float(bound.get("upper", 1 / 3))
            return self._operator(index, "rrelu", (high - low) / 2, bool(bound.get("training")))
        p = bound.get("dropout_p", bound.get("p_dropout"))
        if isinstance(p, (int, float)):
            return self._operator(index, "attention_dropout", float(p), p > 0)
        return False

    def _operator(self, index: int, kind: str, rate: float, active: bool) -> bool:
        """Notes an operator that makes noise, or would; returns whether it does."""
        if active:
            self._add(index, kind, rate).operator = True
        else:
            self.silent.append((index, kind))
        return active

    def _dropout_kind(self, index: int, source: int) -> str:
        graph = self._graph
        kind = DROPOUT[graph.infos[index].name]
        if kind == "channel_dropout" and len(graph.nodes[index].shape or ()) <= 2:
            return "dropout"
        if kind != "dropout":
            return kind
        return self._classifier.elementwise_kind(index, source)

    def _add(self, index: int, kind: str, rate: float | None, sources: int = 0) -> Site:
        site = Site(index, kind, rate, [index], sources)
        self.sites.append(site)
        return site

    def _merge(self, chain: int, index: int, noise: Operand) -> None:
        """The same draw meets the same signal again: one noise operation written in several steps."""
        graph, site = self._graph, self.sites[chain]
        name = graph.infos[index].name
        site.joins.append(index)
        site.sources |= self._noise[noise.node]
        others = [operand for operand in graph.signals(index) if self._chain[operand.node] != chain]
        if others and (name in SUMS or name in REPLACEMENTS):
            # What was taken from one signal is given by another: a mixture, as in zoneout or mixup.
            self._become_choice(site, index)
        elif name in _ADDITIVE and site.kind in ("dropout", "channel_dropout"):
            # A mask that multiplies and then adds its complement fills dropped units: alpha dropout.
            site.kind = "alpha_dropout" if site.kind == "dropout" else "feature_alpha_dropout"

    def _become_choice(self, site: Site, index: int) -> None:
        site.node, site.kind, site.rate, site.part, site.additive = index, "sampling", None, False, False

    def _sum_of_parts(self, index: int) -> int | None:
        """A sum of two signals, one or both of which were just multiplied with noise."""
        graph = self._graph
        if graph.infos[index].name not in _ADDITIVE:
            return None
        signals = graph.signals(index)
        if len(signals) != 2:
            return None
        first, second = (self._chain[operand.node] for operand in signals)
        if first is not None and second is not None and first != second:
            return self._mixture(index, first, second)
        for chain in (first, second):
            if chain is None or first == second:
                continue
            site = self.sites[chain]
            if site.kind in ("gaussian", "uniform") and not site.additive and self._relative_sum(index, site):
                return chain
            if site.part:
                # The signal sets the scale of what is added.
                site.node, site.rate, site.additive, site.part = index, None, True, False
                site.joins.append(index)
                return chain
        return None

    def _relative_sum(self, index: int, site: Site) -> bool:
        """``x + x * r``: the signal times a factor around one, in two steps."""
        kind, rate = self._classifier.relative(index, site)
        if kind == "other":
            return False
        site.node, site.kind, site.rate, site.part = index, kind, rate, False
        site.joins.append(index)
        return True

    def _mixture(self, index: int, first: int, second: int) -> int | None:
        """``m * x + (1 - m) * y``: two products with the same draw, one large where the other is small."""
        graph, sites = self._graph, (self.sites[first], self.sites[second])
        shared = sites[0].sources & sites[1].sources
        if not shared or any(site.absorbed for site in sites):
            return None
        units = [
            next((operand.node for operand in graph.signals(site.joins[0])), site.joins[0]) for site in sites
        ]
        if units[0] == units[1]:
            return None
        sources = self.draws.sources(sites[0].sources | sites[1].sources)

        def spread(one: float, other: float) -> Distribution | None:
            return self._evaluator.distribution(index, sources, {units[0]: one, units[1]: other})

        one, other = spread(1.0, 0.0), spread(0.0, 1.0)
        if one is None or other is None:
            return None
        signs = math.copysign(1.0, one.mean), math.copysign(1.0, other.mean)
        alike, opposed = spread(*signs), spread(signs[0], -signs[1])
        if alike is None or opposed is None or alike.std >= opposed.std:
            return None  # the factors do not move against each other
        kept, absorbed = sites
        absorbed.absorbed = True
        kept.joins = sorted({*kept.joins, *absorbed.joins, index})
        kept.sources |= absorbed.sources
        self._become_choice(kept, index)
        return first

    def _reorders_again(self, index: int, signals: list[Operand], sources: int) -> bool:
        """An index of the same draw as an earlier permutation: its inverse or its continuation."""
        return any(site.kind == "permutation" and site.sources & sources for site in self.sites)

    def _dropped_weight(self, index: int, noise: Operand) -> bool:
        """A mask on a parameter that is then used as a weight (DropConnect) is noise where the two meet."""
        graph = self._graph
        if not (graph.infos[index].mixes and graph.learned[noise.node]):
            return False
        node = noise.node
        for _ in range(_STEPS_TO_MASK):
            noisy = [operand for operand in graph.operands[node] if self._noise[operand.node]]
            if len(noisy) != 1:
                return False
            if not graph.learned[noisy[0].node]:
                break
            node = noisy[0].node
        known = next((site for site in self.sites if site.node == node), None)
        if known is not None:
            known.joins.append(index)
            return True
        mask = noisy[0]
        rate = self._classifier.drop_rate(node, mask)
        if rate is None:
            return False
        site = self._add(node, "weight_dropout", rate, self._noise[mask.node])
        site.joins.append(index)
        return True

    def _factor_of_weight(self, index: int, noisy: list[Operand]) -> None:
        """A random factor around one on a weight is noise there, as the dropout of a weight is."""
        graph = self._graph
        alone = len(noisy) == 1 and not graph.learned[noisy[0].node]
        if not (alone and graph.learned[index] and own_name(graph.infos[index].name) == "mul"):
            return
        kind, rate = self._classifier.factor(noisy[0])
        if kind != "other":
            self._add(index, kind, rate, self._noise[noisy[0].node])

    def _join(self, index: int, noise: Operand, sources: int) -> None:
        graph = self._graph
        name = graph.infos[index].name
        if self._dropped_weight(index, noise):
            return
        if name in COMPARISONS:
            self._add(index, "sampling", None, sources)
            return
        if name in _SELECTIONS or (name in INDEXING and not _is_mask_or_float(graph, noise.node)):
            kind = "other" if name in REPLACEMENTS else "permutation"
            self._add(index, kind, None, sources)
            return
        site = Site(index, "other", None, [index], sources)
        if self._classifier.classify(site, noise):
            self.sites.append(site)


def _is_mask_or_float(graph: Graph, node: int) -> bool:
    dtype = graph.nodes[node].dtype
    return dtype is None or dtype.is_floating_point or str(dtype) == "torch.bool"
