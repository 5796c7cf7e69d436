"""Noise sites: where random numbers meet the signal, of what kind, and how strong."""

from __future__ import annotations

from dataclasses import dataclass, field

from varshift.flow._evaluate import Distribution, Evaluator
from varshift.flow._graph import Graph, Operand, elements
from varshift.flow._ops import (
    ACTIVATIONS,
    COMPARISONS,
    DROPOUT,
    EXPANSIONS,
    INDEXING,
    PRODUCTS,
    RANDOM,
    RECURRENT,
    SUMS,
    VIEWS,
    bind,
)
from varshift.flow._raw import iterate_refs

_SOFTMAX = frozenset({"softmax", "_softmax", "_safe_softmax"})
_ADDITIVE = frozenset({"add", "sub", "subtract", "rsub"})
_STEPS_TO_MASK = 8


@dataclass(slots=True)
class Site:
    """A noise site under construction.

    Attributes:
        node: Node at which the noise meets the signal.
        kind: See `NoiseSite.kind`.
        rate: See `NoiseSite.rate`.
        joins: All nodes at which the same noise meets the same signal, in order of execution.
        sources: Bit set of the random sources.
        centred: Whether it multiplies the signal with noise of mean zero, as in ``x + x * noise``.
    """

    node: int
    kind: str
    rate: float | None
    joins: list[int] = field(default_factory=list)
    sources: int = 0
    centred: bool = False


class NoiseFinder:
    """Walks a graph once and collects its noise sites."""

    def __init__(self, graph: Graph, evaluator: Evaluator, recurrent_modules: frozenset[str]) -> None:
        self._graph = graph
        self._evaluator = evaluator
        self._recurrent_modules = recurrent_modules
        self.sites: list[Site] = []
        self.random: list[int] = []  # nodes that draw random numbers; a bit's position is a place in here
        self._noise: list[int] = []  # bit set of sources behind a value without signal
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
        return self.sites

    def is_noise(self, index: int) -> bool:
        """Whether a value is random and owes nothing to the signal."""
        return bool(self._noise[index])

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
            return self._centred_sum(index)
        if not graph.signal[index]:
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
            active = bound.get("train", True) is not False and float(bound.get("p", 0)) > 0
            if not active:
                return False
            source = next(iter(graph.operands[index]))
            if graph.signal[source.node]:
                self._add(index, self._dropout_kind(index, source.node), float(bound["p"]))
            elif graph.learned[source.node]:
                self._add(index, "weight_dropout", float(bound["p"]))
            else:
                self.random.append(index)
            return True
        if not graph.signal[index]:
            return False
        if info.name in RECURRENT and bound.get("train") and float(bound.get("dropout") or 0) > 0:
            if int(bound.get("num_layers", 2)) > 1:
                self._add(index, "recurrent_dropout", float(bound["dropout"]))
            return True
        if info.name in ("rrelu", "rrelu_with_noise") and bound.get("training"):
            low, high = float(bound.get("lower", 0.125)), float(bound.get("upper", 1 / 3))
            self._add(index, "rrelu", (high - low) / 2)
            return True
        p = bound.get("dropout_p", bound.get("p_dropout"))
        if isinstance(p, (int, float)) and p > 0:
            self._add(index, "attention_dropout", float(p))
            return True
        return False

    def _dropout_kind(self, index: int, source: int) -> str:
        graph = self._graph
        kind = DROPOUT[graph.infos[index].name]
        if kind == "channel_dropout" and len(graph.nodes[index].shape or ()) <= 2:
            return "dropout"
        if kind != "dropout":
            return kind
        return self._elementwise_kind(index, source)

    def _elementwise_kind(self, index: int, source: int) -> str:
        """Tells dropout on attention weights and between recurrent layers from the ordinary kind."""
        graph = self._graph
        if graph.nodes[index].module in self._recurrent_modules:
            return "recurrent_dropout"
        for _ in range(8):
            name = graph.infos[source].name
            if name in _SOFTMAX:
                return "attention_dropout"
            signals = graph.signals(source)
            if name not in VIEWS or len(signals) != 1:
                break
            source = signals[0].node
        return "dropout"

    def _add(self, index: int, kind: str, rate: float | None, sources: int = 0) -> Site:
        site = Site(index, kind, rate, [index], sources)
        self.sites.append(site)
        return site

    def _sources(self, bits: int) -> list[int]:
        return [index for position, index in enumerate(self.random) if bits >> position & 1]

    def _distribution(self, operand: Operand) -> Distribution | None:
        return self._evaluator.distribution(operand.node, self._sources(self._noise[operand.node]))

    def _merge(self, chain: int, index: int, noise: Operand) -> None:
        """The same draw meets the same signal again: one noise operation written in several steps."""
        site = self.sites[chain]
        site.joins.append(index)
        site.sources |= self._noise[noise.node]
        if self._graph.infos[index].name in _ADDITIVE and site.kind in ("dropout", "channel_dropout"):
            # A mask that multiplies and then adds its complement fills dropped units: alpha dropout.
            site.kind = "alpha_dropout" if site.kind == "dropout" else "feature_alpha_dropout"

    def _centred_sum(self, index: int) -> int | None:
        """``x + s * noise``: noise of mean zero scaled by a signal enters where it is added."""
        graph = self._graph
        if graph.infos[index].name not in _ADDITIVE:
            return None
        signals = graph.signals(index)
        if len(signals) != 2:
            return None
        chains = [self._chain[operand.node] for operand in signals]
        for chain, other in ((chains[0], chains[1]), (chains[1], chains[0])):
            if chain is not None and chain != other and self.sites[chain].centred:
                site = self.sites[chain]
                site.joins.append(index)
                site.node = index
                site.centred = False
                site.rate = None  # the signal sets the scale
                return chain
        return None

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
        distribution = self._distribution(mask)
        if distribution is None or not distribution.is_mask or distribution.probability is None:
            return False
        rate = distribution.probability
        rate = 1 - rate if self._drops_where_true(node, mask) else rate
        site = self._add(node, "weight_dropout", round(rate, 6), self._noise[mask.node])
        site.joins.append(index)
        return True

    def _join(self, index: int, noise: Operand, sources: int) -> None:
        graph = self._graph
        name = graph.infos[index].name
        if self._dropped_weight(index, noise):
            return
        if name in COMPARISONS:
            self._add(index, "sampling", None, sources)
            return
        if name in INDEXING and not _is_mask_or_float(graph, noise.node):
            self._add(index, "permutation", None, sources)
            return
        distribution = self._distribution(noise)
        if distribution is not None and distribution.std == 0:
            return
        kind, rate = self._classify(index, noise, distribution)
        if kind == "dropout":
            source = next((o.node for o in graph.signals(index)), index)
            kind = self._elementwise_kind(index, source)
        site = self._add(index, kind, rate, sources)
        site.centred = (
            distribution is not None and name in PRODUCTS and abs(distribution.mean) <= 0.1 * distribution.std
        )

    def _classify(
        self, index: int, noise: Operand, distribution: Distribution | None
    ) -> tuple[str, float | None]:
        graph = self._graph
        pooled = self._pooled(noise.node)
        if distribution is None:
            return ("drop_block" if pooled else "other"), None
        name = graph.infos[index].name
        if distribution.is_mask and distribution.probability is not None:
            rate = distribution.probability
            if self._drops_where_true(index, noise):
                rate = 1 - rate
            if name in SUMS:
                return "other", round(rate, 6)
            return ("drop_block" if pooled else self._mask_kind(index, noise.node)), round(rate, 6)
        if distribution.discrete is not None:
            return "other", None
        source = distribution.source
        if source in ("randn", "randn_like", "normal", "normal_functional"):
            if distribution.affine or graph.learned[noise.node]:
                return "gaussian", distribution.std
        elif source in ("rand", "rand_like", "uniform") and distribution.affine:
            return "uniform", distribution.half_width
        return "other", None

    def _drops_where_true(self, index: int, noise: Operand) -> bool:
        """Whether a boolean mask marks what is dropped rather than what is kept."""
        graph = self._graph
        info, bound = graph.infos[index], bind(graph.nodes[index])
        if info.name in ("masked_fill", "index_put", "masked_scatter", "index_fill"):
            return True
        if info.name == "where" and noise.argument == "condition":
            kept = next(iterate_refs(bound.get("self")), None)
            other = next(iterate_refs(bound.get("other")), None)
            carries = graph.signal if graph.signal[index] else graph.learned
            data = {operand.ref for operand in graph.operands[index] if carries[operand.node]}
            return other in data and kept not in data
        return False

    def _mask_kind(self, index: int, noise: int) -> str:
        """The kind of a Bernoulli mask from the dimensions over which it varies."""
        full = self._graph.nodes[index].shape or ()
        mask = self._drawn_shape(noise)
        mask = (1,) * (len(full) - len(mask)) + mask[-len(full) :] if full else mask
        varies = [m > 1 for m in mask]
        wants = [size > 1 for size in full]
        if elements(mask) == 1 or (not any(varies[1:]) and any(wants[1:])):
            return "drop_path"
        if all(v or not w for v, w in zip(varies[1:], wants[1:], strict=True)):
            return "dropout"
        if len(full) >= 4 and varies[1] and not any(varies[2:]):
            return "channel_dropout"
        return "channel_dropout" if len(full) == 3 else "dropout"

    def _drawn_shape(self, noise: int) -> tuple[int, ...]:
        """Shape of a noise value before it was expanded."""
        graph = self._graph
        shape = graph.nodes[noise].shape or ()
        node = noise
        for _ in range(32):
            name = graph.infos[node].name
            noisy = [operand.node for operand in graph.operands[node] if self._noise[operand.node]]
            if len(noisy) != 1 or (name not in ACTIVATIONS and name not in VIEWS):
                break
            node = noisy[0]
            if name in EXPANSIONS or (name in ACTIVATIONS and graph.elements(node) < elements(shape)):
                shape = graph.nodes[node].shape or ()
        return shape

    def _pooled(self, noise: int) -> bool:
        """Whether the noise was spread over a neighbourhood before use."""
        graph = self._graph
        stack, seen = [noise], set()
        while stack:
            node = stack.pop()
            if node in seen or not self._noise[node]:
                continue
            seen.add(node)
            if "pool" in graph.infos[node].name or "conv" in graph.infos[node].name:
                return True
            stack.extend(graph.inputs[node])
        return False


def _is_mask_or_float(graph: Graph, node: int) -> bool:
    dtype = graph.nodes[node].dtype
    return dtype is None or dtype.is_floating_point or str(dtype) == "torch.bool"
