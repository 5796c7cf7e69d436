"""Of what kind the noise of a site is, and how strong."""

from __future__ import annotations

from dataclasses import dataclass, field

from varshift.flow._evaluate import Distribution, Evaluator
from varshift.flow._factors import Factors
from varshift.flow._graph import Graph, Operand, elements
from varshift.flow._ops import bind
from varshift.flow._raw import iterate_refs
from varshift.flow._vocabulary import ACTIVATIONS, CONCATENATIONS, EXPANSIONS, PRODUCTS, SUMS, VIEWS

# Operations that put something in the place of a part of a signal, and the arguments that hold it.
REPLACEMENTS = {
    "where": ("self", "other"),
    "masked_fill": ("value",),
    "index_put": ("values",),
    "index_fill": ("value",),
    "masked_scatter": ("source",),
    "lerp": ("end",),
}
_QUOTIENTS = frozenset({"div", "divide", "true_divide"})
_NORMAL = frozenset({"randn", "randn_like", "normal", "normal_functional"})
_UNIFORM = frozenset({"rand", "rand_like", "uniform"})
_SOFTMAX = frozenset({"softmax", "_softmax", "_safe_softmax"})


@dataclass(slots=True)
class Site:
    """A noise site under construction.

    Attributes:
        node: Node at which the noise meets the signal.
        kind: See `NoiseSite.kind`.
        rate: See `NoiseSite.rate`.
        joins: All nodes at which the same noise meets the same signal, in order of execution.
        sources: Bit set of the random sources.
        additive: See `NoiseSite.additive`.
        part: Whether it multiplies the signal with a factor that alone is no noise on it, of mean zero in
            particular: the noise enters where the product is added, as in ``x + x * noise``.
        absorbed: Whether it turned out to be a part of another site.
        operator: Whether one operator makes the noise, not arithmetic with random numbers.
    """

    node: int
    kind: str
    rate: float | None
    joins: list[int] = field(default_factory=list)
    sources: int = 0
    additive: bool = False
    part: bool = False
    absorbed: bool = False
    operator: bool = False


class Draws:
    """What is known of the random numbers of a graph while it is walked.

    Attributes:
        random: Nodes that draw random numbers; a bit's position is a place in here.
        bits: For each node visited, the sources behind a value without signal, as a bit set.
    """

    def __init__(self) -> None:
        self.random: list[int] = []
        self.bits: list[int] = []

    def sources(self, bits: int) -> list[int]:
        """The nodes of a bit set."""
        return [index for position, index in enumerate(self.random) if bits >> position & 1]


class Classifier:
    """Tells kind and rate of the noise that meets a signal at a node."""

    def __init__(
        self, graph: Graph, evaluator: Evaluator, draws: Draws, recurrent_modules: frozenset[str]
    ) -> None:
        self._graph = graph
        self._evaluator = evaluator
        self._draws = draws
        self._recurrent_modules = recurrent_modules
        self._factors = Factors(graph)

    def classify(self, site: Site, noise: Operand) -> bool:
        """Sets kind and rate of a site at which noise meets the signal; False where it is none after all."""
        graph, index = self._graph, site.node
        distribution = self._distribution(noise)
        if distribution is not None and distribution.std == 0 and not graph.learned[noise.node]:
            return False
        site.kind, site.rate = self._classify(index, noise, distribution, site)
        if site.kind == "dropout":
            source = next((operand.node for operand in graph.signals(index)), index)
            site.kind = self.elementwise_kind(index, source)
        return True

    def relative(self, index: int, site: Site) -> tuple[str, float | None]:
        """Kind and rate of a site's noise as a factor of the signal that a node is a multiple of."""
        unit = self._factors.unit(index)
        return self._spread(self._factor(index, unit, site.sources) if unit is not None else None)

    def factor(self, noise: Operand) -> tuple[str, float | None]:
        """Kind and rate of a continuous noise that multiplies something; ``"other"`` for any other noise."""
        return self._spread(self._distribution(noise))

    def drop_rate(self, index: int, mask: Operand) -> float | None:
        """Drop probability of a mask, None when it is none or its probability is not known."""
        distribution = self._distribution(mask)
        if distribution is None or not distribution.is_mask or distribution.probability is None:
            return None
        rate = distribution.probability
        return round(1 - rate if self._drops_where_true(index, mask) else rate, 6)

    def elementwise_kind(self, index: int, source: int) -> str:
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

    def _distribution(self, operand: Operand) -> Distribution | None:
        sources = self._draws.sources(self._draws.bits[operand.node])
        return self._evaluator.distribution(operand.node, sources)

    def _classify(
        self, index: int, noise: Operand, distribution: Distribution | None, site: Site
    ) -> tuple[str, float | None]:
        graph = self._graph
        name = graph.infos[index].name
        if name in REPLACEMENTS:
            return self._replaced(index, noise, distribution, site)
        if name in _QUOTIENTS and noise.argument != "self":
            return self.relative(index, site)
        if name in SUMS or name in CONCATENATIONS or graph.infos[index].mixes:
            return self._added(index, noise, distribution, site)
        if distribution is None:
            return ("drop_block" if self._pooled(noise.node) else "other"), None
        if distribution.is_mask and distribution.probability is not None:
            return self._mask(index, noise, distribution.probability)
        if distribution.discrete is not None:
            return "other", None
        learned = graph.learned[noise.node]
        site.part = name in PRODUCTS and abs(distribution.mean) <= 0.1 * distribution.std
        scale = abs(distribution.mean) if name in PRODUCTS and not site.part else 1.0
        if distribution.source in _NORMAL and (distribution.affine or learned):
            return "gaussian", _tidy(distribution.std / scale)
        if distribution.source in _UNIFORM and distribution.affine and distribution.half_width is not None:
            return "uniform", _tidy(distribution.half_width / scale)
        return "other", None

    def _replaced(
        self, index: int, noise: Operand, distribution: Distribution | None, site: Site
    ) -> tuple[str, float | None]:
        """A random choice, unit by unit, between a signal and what stands in for it."""
        graph = self._graph
        name = graph.infos[index].name
        arguments = REPLACEMENTS[name]
        if noise.argument in arguments:
            # Fresh noise stands in for the signal, or is mixed in.
            return self._added(index, noise, distribution, site) if name == "lerp" else ("other", None)
        if len(graph.signals(index)) > 1:
            unit = self._factors.unit(index)
            factor = self._factor(index, unit, site.sources) if unit is not None else None
            if factor is None:
                return "sampling", None
            if not factor.is_mask or factor.probability is None:
                return self._spread(factor)
            return self._mask_kind(index, noise.node), round(factor.probability, 6)
        if distribution is None:
            return ("drop_block" if self._pooled(noise.node) else "other"), None
        if not distribution.is_mask or distribution.probability is None:
            return "other", None
        kind, rate = self._mask(index, noise, distribution.probability)
        return (kind if self._by_zero(index, arguments) else "other"), rate

    def _added(
        self, index: int, noise: Operand, distribution: Distribution | None, site: Site
    ) -> tuple[str, float | None]:
        """Noise beside the signal: a term, or values of its own; its size owes nothing to the signal's."""
        graph = self._graph
        name = graph.infos[index].name
        signals = [operand.node for operand in graph.signals(index)]
        if name in SUMS:
            unit = self._factors.unit(index)
            factor = self._factor(index, unit, site.sources) if unit is not None else None
            if factor is not None:
                return self._spread(factor)
            distribution = self._evaluator.distribution(
                index, self._draws.sources(site.sources), dict.fromkeys(signals, 0.0)
            )
        site.additive = True
        if distribution is None:
            return "other", None
        if distribution.discrete is not None:
            p = distribution.probability if distribution.is_mask else None
            return "other", round(p, 6) if p is not None and distribution.std > 0 else None
        if graph.infos[index].mixes:
            return ("gaussian" if distribution.source in _NORMAL else "other"), None
        learned = graph.learned[noise.node]
        scaled = name in SUMS and distribution.std == 0 and not learned  # a signal sets the scale
        if distribution.source in _NORMAL and (distribution.affine or learned):
            return "gaussian", None if scaled else distribution.std
        if distribution.source in _UNIFORM and distribution.affine:
            return "uniform", None if scaled else distribution.half_width
        return "other", None

    def _mask(self, index: int, noise: Operand, probability: float) -> tuple[str, float | None]:
        """A drop: kind from the mask's shape, rate from the probability that it is zero."""
        rate = 1 - probability if self._drops_where_true(index, noise) else probability
        kind = "drop_block" if self._pooled(noise.node) else self._mask_kind(index, noise.node)
        return kind, round(rate, 6)

    def _by_zero(self, index: int, arguments: tuple[str, ...]) -> bool:
        """Whether dropped units become zero, not a learned token or another filling."""
        graph, bound = self._graph, bind(self._graph.nodes[index])
        signals = {operand.ref for operand in graph.signals(index)}
        for argument in arguments:
            value = bound.get(argument)
            ref = next(iterate_refs(value), None)
            if ref in signals:
                continue
            if ref is None:
                return value == 0
            current = next((o.node for o in graph.operands[index] if o.ref == ref), ref)
            return not graph.learned[current] and self._evaluator.constant(current) == 0
        return False

    def _drops_where_true(self, index: int, noise: Operand) -> bool:
        """Whether a boolean mask marks what is dropped rather than what is kept."""
        graph = self._graph
        info, bound = graph.infos[index], bind(graph.nodes[index])
        if info.name in ("masked_fill", "index_put", "masked_scatter", "index_fill"):
            return True
        if info.name == "lerp":
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
            noisy = [operand.node for operand in graph.operands[node] if self._draws.bits[operand.node]]
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
            if node in seen or not self._draws.bits[node]:
                continue
            seen.add(node)
            if "pool" in graph.infos[node].name or "conv" in graph.infos[node].name:
                return True
            stack.extend(graph.inputs[node])
        return False

    def _spread(self, factor: Distribution | None) -> tuple[str, float | None]:
        """Kind and rate of a continuous factor around its mean; ``"other"`` for anything else."""
        if factor is None or not factor.affine or abs(factor.mean) <= 0.1 * factor.std:
            return "other", None
        if factor.source in _NORMAL:
            return "gaussian", _tidy(factor.std / abs(factor.mean))
        if factor.source in _UNIFORM and factor.half_width is not None:
            return "uniform", _tidy(factor.half_width / abs(factor.mean))
        return "other", None

    def _factor(self, index: int, unit: int, sources: int) -> Distribution | None:
        """Distribution of what a signal is multiplied with between two nodes."""
        return self._evaluator.distribution(index, self._draws.sources(sources), {unit: 1.0})


def _tidy(value: float) -> float:
    """Rounds away the error of a quotient, so that 0.1 reads 0.1."""
    return float(f"{value:.6g}")
