"""What a subgraph of pure noise looks like: its values and how likely they are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from varshift._threads import one_thread
from varshift.flow._graph import Graph
from varshift.flow._ops import bind
from varshift.flow._raw import iterate_refs, map_refs
from varshift.flow._vocabulary import ACTIVATIONS, DROPOUT, PLACING, RANDOM, VIEWS

_POINTS = 4096
_MOST_NODES = 256
_MOST_ELEMENTS = 1 << 24
_ENOUGH_VALUES = 8192
_MOST_REPEATS = 48


@dataclass(frozen=True, slots=True)
class Distribution:
    """Marginal distribution of the elements of a noise value.

    Attributes:
        discrete: Its two values, smaller first, when there are just two.
        probability: Probability of the value zero (or False) among two, of the smaller one if none is zero.
        mean: Mean.
        std: Standard deviation.
        half_width: Half the range, when the noise is uniform.
        source: Base name of the random operator behind it.
        affine: Whether it is the source's distribution, moved and scaled.
        error: Standard error of the mean where it was sampled, 0 where it is exact.
        sampled: Whether it was sampled.
    """

    discrete: tuple[float, float] | None
    probability: float | None
    mean: float
    std: float
    half_width: float | None
    source: str
    affine: bool
    error: float = 0.0
    sampled: bool = False

    @property
    def is_mask(self) -> bool:
        """Whether it is zero or one other value."""
        return self.discrete is not None and 0.0 in self.discrete


class Evaluator:
    """Evaluates noise subgraphs of one graph on the CPU, without touching any random state outside."""

    def __init__(self, graph: Graph, tensors: dict[str, Tensor]) -> None:
        self._graph = graph
        self._tensors = tensors
        self._cache: dict[Any, Distribution | None] = {}
        self._given: Mapping[int, float] = {}

    def distribution(
        self, node: int, sources: list[int], given: Mapping[int, float] | None = None
    ) -> Distribution | None:
        """Distribution of a value made of noise; None when it cannot be evaluated.

        Args:
            node: The value.
            sources: The random nodes behind it.
            given: Levels to put in the place of signals; without any, the value must be free of signal.
        """
        self._given = given or {}
        order = self._closure(node)
        if order is None:
            return None
        key = self._signature(order)
        if key not in self._cache:
            try:
                self._cache[key] = self._evaluate(node, order, sources)
            except Exception:
                # An operator without a CPU kernel, or arguments that only made sense on fake tensors: the
                # site is reported without its rate.
                self._cache[key] = None
        return self._cache[key]

    def constant(self, ref: int) -> float | None:
        """The value of a noise-free, signal-free tensor whose elements are all equal."""
        given, self._given = self._given, {}
        try:
            order = self._closure(ref)
            if order is None or any(self._graph.infos[i].name in RANDOM for i in order):
                return None
            value = self._run(order)[ref]
        except Exception:  # as above: unknown is an honest answer
            return None
        finally:
            self._given = given
        level = _level(value) if isinstance(value, Tensor) else None
        return None if level is None else float(level)

    def _closure(self, node: int) -> list[int] | None:
        graph = self._graph
        found: set[int] = set()
        stack = [node]
        while stack:
            index = stack.pop()
            if index in found:
                continue
            if len(found) >= _MOST_NODES or graph.elements(index) > _MOST_ELEMENTS:
                return None
            if index in self._given:
                found.add(index)
                continue
            if (graph.signal[index] and not self._given) or graph.nodes[index].role == "input":
                return None
            found.add(index)
            raw = graph.nodes[index]
            stack.extend(operand.node for operand in graph.operands[index])
            refs = (*iterate_refs(raw.args), *iterate_refs(dict(raw.kwargs)))
            stack.extend(ref for ref in refs if not graph.signal[ref])
        return sorted(found)

    def _signature(self, order: list[int]) -> Any:
        place = {index: position for position, index in enumerate(order)}
        parts = []
        for index in order:
            node = self._graph.nodes[index]
            if index in self._given:
                parts.append((self._given[index], node.shape))
                continue
            named = map_refs((list(node.args), dict(node.kwargs)), lambda ref: ("ref", place.get(ref.index)))
            parts.append(
                (self._graph.infos[index].text, repr(named), node.target, node.shape, id(node.value))
            )
        return tuple(parts)

    def _evaluate(self, node: int, order: list[int], sources: list[int]) -> Distribution | None:
        graph = self._graph
        inside = [index for index in order if index in sources]
        name = graph.infos[inside[0]].name if inside else "other"
        if len(inside) == 1:
            base = self._base(inside[0])
            if base is not None:
                exact = self._push(node, order, inside[0], base)
                if exact is not None:
                    return exact
        return self._sample(node, order, name)

    def _base(self, source: int) -> tuple[str, tuple[float, float]] | None:
        """The source's family and parameters: a probability, a range, or mean and standard deviation."""
        info, bound = self._graph.infos[source], bind(self._graph.nodes[source])
        name = info.name
        if name in ("rand", "rand_like"):
            return "uniform", (0.0, 1.0)
        if name == "uniform":
            return "uniform", (float(bound["from"]), float(bound["to"]))
        if name in ("randn", "randn_like"):
            return "normal", (0.0, 1.0)
        if name == "normal":
            mean, std = self._number(bound.get("mean")), self._number(bound.get("std"))
            return None if mean is None or std is None else ("normal", (mean, std))
        if name == "bernoulli":
            p = self._number(bound["p"] if bound.get("p") is not None else bound.get("self"))
            return None if p is None else ("bernoulli", (p, 0.0))
        if name in ("dropout", "native_dropout", "feature_dropout"):
            filled = self._number(bound.get("input"))
            p = float(bound["p"])
            return None if filled is None or p >= 1 else ("bernoulli", (1 - p, filled / (1 - p)))
        return None

    def _number(self, value: Any) -> float | None:
        """A parameter of a distribution: a number, or a tensor that holds one number everywhere."""
        if isinstance(value, (int, float)):
            return float(value)
        ref = next(iterate_refs(value), None)
        return None if ref is None else self.constant(ref)

    def _push(
        self, node: int, order: list[int], source: int, base: tuple[str, tuple[float, float]]
    ) -> Distribution | None:
        """Pushes the source's distribution through a chain of elementwise operations, exactly."""
        family, (first, second) = base
        name = self._graph.infos[source].name
        if family == "bernoulli":
            high = second or 1.0
            values = self._chain(node, order, source, torch.tensor([0.0, high], dtype=torch.float64))
            if values is None:
                return None
            low, high = (float(value) for value in values.tolist())
            return _two_values(low, 1 - first, high, name)
        if family == "uniform":
            points = first + (second - first) * (torch.arange(_POINTS, dtype=torch.float64) + 0.5) / _POINTS
        else:
            quantiles = (torch.arange(_POINTS, dtype=torch.float64) + 0.5) / _POINTS
            points = first + second * math.sqrt(2) * torch.erfinv(2 * quantiles - 1)
        values = self._chain(node, order, source, points)
        if values is None:
            return None
        values = values.double()
        levels = torch.unique(values)
        if len(levels) == 2:
            share = self._share(node, order, source, points, values, family, (first, second))
            low, high = levels.tolist()
            return _two_values(low, share, high, name)
        slope = (values[-1] - values[0]) / (points[-1] - points[0])
        line = values[0] + slope * (points - points[0])
        affine = bool(torch.allclose(line, values, rtol=1e-5, atol=1e-7 + 1e-5 * float(values.abs().max())))
        if affine:
            middle = (first + second) / 2 if family == "uniform" else first
            mean = float(values[0] + slope * (middle - points[0]))
            if family == "uniform":
                half = _tidy(abs(float(slope)) * (second - first) / 2)
                return Distribution(None, None, mean, _tidy(half / math.sqrt(3)), half, name, True)
            return Distribution(None, None, mean, _tidy(abs(float(slope)) * second), None, name, True)
        return Distribution(None, None, float(values.mean()), float(values.std()), None, name, False)

    def _share(
        self,
        node: int,
        order: list[int],
        source: int,
        points: Tensor,
        values: Tensor,
        family: str,
        base: tuple[float, float],
    ) -> float:
        """Probability of the lower of two levels; a single threshold is located to rounding."""
        low = values == values.min()
        changes = torch.nonzero(low[1:] != low[:-1]).flatten().tolist()
        if len(changes) != 1:
            return float(low.double().mean())
        left, right = float(points[changes[0]]), float(points[changes[0] + 1])
        for _ in range(3):
            grid = torch.linspace(left, right, 256, dtype=torch.float64)
            fine = self._chain(node, order, source, grid)
            if fine is None:
                break
            below = fine.double() == values.min()
            step = int(torch.nonzero(below[1:] != below[:-1]).flatten()[0])
            left, right = float(grid[step]), float(grid[step + 1])
        threshold = (left + right) / 2
        if family == "uniform":
            probability = (threshold - base[0]) / (base[1] - base[0])
        else:
            probability = 0.5 * (1 + math.erf((threshold - base[0]) / (base[1] * math.sqrt(2))))
        return probability if bool(low[0]) else 1 - probability

    def _chain(self, node: int, order: list[int], source: int, points: Tensor) -> Tensor | None:
        """Runs the operations between a source and a value on a vector of points instead of a tensor."""
        graph = self._graph
        derived: set[int] = {source}
        for index in order:
            if any(operand.node in derived for operand in graph.operands[index]) and index not in self._given:
                derived.add(index)
        values: dict[int, Any] = {source: points}
        fixed: dict[int, Any] = {}
        for index in order:
            if index == source or index not in derived:
                continue
            operands = graph.operands[index]
            name = graph.infos[index].name
            moving = next(operand for operand in operands if operand.node in derived)
            if name in PLACING:
                return None
            if name in VIEWS:
                values[index] = _cast(values[moving.node], graph.nodes[index].dtype)
                continue
            if name not in ACTIVATIONS:
                return None
            replaced = {
                operand.ref: values.get(operand.node) for operand in operands if operand.node in derived
            }
            if not fixed:
                fixed = self._run([other for other in order if other not in derived])
            for operand in operands:
                if operand.node not in derived:
                    other = fixed.get(operand.node)
                    level = _level(other) if isinstance(other, Tensor) else None
                    if level is None:
                        return None
                    # In full length, since the operation may write to it.
                    replaced[operand.ref] = _cast(level, level.dtype).expand(points.shape)
            raw = graph.nodes[index]
            args = map_refs(list(raw.args), lambda ref, known=replaced: _fresh(known[ref.index]))
            values[index] = raw.op(*args, **{k: v for k, v in raw.kwargs.items() if k != "device"})
        return values.get(node)

    def _run(self, order: list[int]) -> dict[int, Any]:
        """Executes nodes for real, in place where they say so."""
        graph = self._graph
        values: dict[int, Any] = {}

        def resolve(ref: Any) -> Any:
            if ref.index in values:
                return values[ref.index]
            node = graph.nodes[ref.index]
            return torch.empty(node.shape or (), dtype=node.dtype)

        for index in order:
            node = graph.nodes[index]
            if index in self._given:
                values[index] = torch.full(node.shape or (), self._given[index], dtype=node.dtype)
            elif node.role == "call":
                args = map_refs(list(node.args), resolve)
                kwargs = {key: map_refs(value, resolve) for key, value in node.kwargs.items()}
                if kwargs.get("device") is not None:
                    kwargs["device"] = torch.device("cpu")
                kwargs.pop("pin_memory", None)
                kwargs.pop("generator", None)
                values[index] = node.op(*args, **kwargs)
            else:
                held = node.value if node.value is not None else self._tensors.get(node.target or "")
                if held is None:
                    raise LookupError(node.target)
                values[index] = held.detach().cpu().clone()
        return values

    def _sample(self, node: int, order: list[int], name: str) -> Distribution | None:
        work = sum(self._graph.elements(index) for index in order)
        if any(self._graph.infos[index].mixes for index in order):
            return None
        drawn: list[Tensor] = []
        count = 0
        with torch.random.fork_rng(devices=[]), torch.no_grad(), one_thread():
            torch.manual_seed(0)
            for _ in range(_MOST_REPEATS):
                value = self._run(order)[node]
                if not isinstance(value, Tensor):
                    return None
                drawn.append(value.double().flatten())
                count += value.numel()
                if count >= _ENOUGH_VALUES or work * len(drawn) > _MOST_ELEMENTS:
                    break
        values = torch.cat(drawn)
        independent = len(drawn) * min((self._graph.elements(i) for i in order if self._draws(i)), default=1)
        error = float(values.std(correction=0)) / math.sqrt(max(independent, 1))
        # A scale that is redrawn with every mask must not make two values look like many.
        zeros = float((values == 0).double().mean())
        nonzero = values[values != 0]
        if 0 < zeros < 1 and _single_valued(drawn):
            return replace(_two_values(0.0, zeros, float(nonzero.mean()), name), error=error, sampled=True)
        mean, std = float(values.mean()), float(values.std())
        return Distribution(None, None, mean, std, None, name, False, error, sampled=True)

    def _draws(self, index: int) -> bool:
        name = self._graph.infos[index].name
        return name in RANDOM or name in DROPOUT


def _single_valued(drawn: list[Tensor]) -> bool:
    for values in drawn:
        nonzero = values[values != 0]
        if len(nonzero) and float(nonzero.max() - nonzero.min()) > 1e-6 * float(nonzero.abs().max()):
            return False
    return True


def _two_values(low: float, share: float, high: float, source: str) -> Distribution:
    if low > high:
        low, high, share = high, low, 1 - share
    mean = share * low + (1 - share) * high
    std = math.sqrt(max(share * (1 - share), 0.0)) * (high - low)
    probability = 1 - share if high == 0 else share
    return Distribution((low, high), round(probability, 6), mean, std, None, source, False)


def _level(value: Tensor) -> Tensor | None:
    """The value that all elements of a tensor share, as a scalar tensor."""
    if value.numel() == 0 or bool((value != value.flatten()[0]).any()):
        return None
    return value.flatten()[0].cpu()


def _cast(values: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Casts as the network does, but keeps full precision."""
    if dtype is None:
        return values
    return values.double() if dtype.is_floating_point else values.to(dtype)


def _fresh(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _tidy(value: float) -> float:
    """Rounds away the error of evaluating in floats, so that 0.1 reads 0.1."""
    return float(f"{value:.6g}")
