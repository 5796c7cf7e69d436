"""The network in training: data and noise apart, norms as anchors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from varshift.flow import (
    Flow,
    Node,
    NoiseSite,
    NormSite,
    Ref,
    UnknownOperator,
    arguments_of,
    execute,
    overwrites,
)

from . import _indexing, _noise  # noqa: F401 - the former registers rules
from ._anchor import Anchor, anchor
from ._call import Call, plain
from ._fields import made_up_input
from ._interpreter import Anchors, Interpreter, UnknownOperand, wide
from ._rules import propagate, sampled
from ._signal import TINY, Line, Signal, Unknown, channel_mean, channel_variance, per_channel
from ._unsure import unsure_after, unsure_behind

Rates = Mapping[int, float]
_DRAWS = 16  # of noise that no rule is for
_SAMPLES = 4096  # draws of a mask whose rate does not tell how much it drops
_MOST_STEPS = 64  # of one hand-written noise
# A doubt: batch statistics follow noise that a whole batch shares, and the variance in it has none of that.
ONE_DRAW = "one draw per batch"
# A doubt: noise has been lost on the way, so that nothing is known of what is left of it.
UNKNOWN = "unknown"
STAND_IN = "stand-in"  # a doubt: the input of a norm is made up
_RATES = ("dropout_p", "dropout")


class TrainPass(Interpreter):
    """The network in training: data and noise apart, norms as anchors.

    Args:
        flow: The network in train mode.
        tensors: Parameters and buffers by name.
        inputs: The inputs.
        made_up: Whether the inputs are synthetic, so that norms have to set the scale of the data.
        rates: Rates of noise sites (by position in the flow) that differ from the network's.
        frozen: Anchors of an earlier pass whose gains are kept.
        trusted: Names of norms whose running statistics have been learned.
        clean: Gains of the norms whose running statistics were re-estimated without noise.
    """

    def __init__(
        self,
        flow: Flow,
        tensors: Mapping[str, Tensor],
        inputs: Sequence[Tensor],
        *,
        made_up: bool,
        trusted: frozenset[str],
        rates: Rates | None = None,
        frozen: Anchors | None = None,
        clean: Mapping[tuple[str, int], Tensor] | None = None,
    ) -> None:
        super().__init__(flow, tensors, inputs)
        self.made_up, self.trusted, self.clean = made_up, trusted, clean or {}
        self.rates, self.frozen = rates or {}, frozen or {}
        self.anchors: dict[tuple[str, int], Anchor] = {}
        self.untreated: dict[int, NoiseSite] = {}
        self.sites = {site.node: (place, site) for place, site in enumerate(flow.noises)}
        self._signals, self._noisy_paths, self._random = noisy_paths(flow)

    @property
    def _anchoring(self) -> bool:
        """Whether anchors are made, for which it matters what is unsure."""
        return bool(self.trusted) and not self.frozen

    def kept(self) -> set[int]:
        return {index for i in self._random | self._noisy_paths for index in self.flow.nodes[i].inputs}

    def enter(self, x: Tensor | None) -> Any:
        if x is None:
            return Unknown()
        return Signal(x, floating=self.made_up) if x.is_floating_point() else x

    def call(self, node: Node) -> Any:
        if node.index in self.sites:
            return self._noise_site(node, *self.sites[node.index])
        if node.index in self._noisy_paths:
            return Unknown()  # lies between a source of random numbers and the site that uses it
        if node.index in self.norm_at and node.has("batch_norm"):
            return self._norm(node, *self.norm_at[node.index])
        args, kwargs = self.operands(node)
        if node.op == "getitem" and isinstance(args[0], (tuple, list)):
            return args[0][args[1]]  # one of the results of an operation with several
        call = Call(node, args, kwargs)
        if node.index not in self._signals:
            return call.run(plain)  # random numbers in the shape of a signal, say
        if any(signal.noisy for signal in call.signals):
            return self._doubted(call, propagate(call))
        floating = bool(call.signals) and call.floating()
        return self._doubted(call, _wrap(call.run(plain), floating, call.doubts()))

    def _doubted(self, call: Call, result: Any) -> Any:
        """The result of a call with what is unsure of it."""
        if not self._anchoring or not call.signals:
            return result
        if isinstance(result, tuple):
            return tuple(self._doubted(call, part) for part in result)
        if not isinstance(result, Signal):
            return result
        name = call.node.op
        named, squares = (call.named(), call.squares()) if call.node.has("weighted") else ({}, None)
        return replace(result, unsure=unsure_after(name, named, squares, call.signals, result))

    def _norm(self, node: Node, site: NormSite, call: int) -> Any:
        named = self.statistics(node)
        x = named["input"]
        key = (site.name, call)
        learned = site.name in self.trusted and isinstance(named["running_mean"], Tensor)
        mean, variance = (named["running_mean"], named["running_var"]) if learned else (None, None)
        stand_in = None
        if isinstance(x, Unknown):
            self.blame(node.inputs[0], x)
            stand_in = self._stand_in(node, site, call, mean, variance)
            # Where no noise got lost, training and evaluation agree on the data in the field.
            lost = any(site.name in noise.reaches for noise in self.flow.noises)
            x = Signal(stand_in, doubts=frozenset({UNKNOWN if lost else STAND_IN}))
        made, x, line = anchor(site.name, x, mean, variance, self.frozen.get(key), clean=self.clean.get(key))
        made.stand_in, made.eps = stand_in, float(named["eps"])
        self.anchors[key] = made
        source = next((i for i in node.inputs if isinstance(self.values.get(i), Signal)), None)
        if source is not None and self.read_after(node, source):
            # A sum goes on with the size that the norm knows.
            self.values[source] = x if line is None else x.moved(line)
        scale, shift = made.norm(named["weight"], named["bias"], made.eps)
        result = x.moved(Line(scale, shift, scale) if line is None else line.then(scale, shift))
        return result if node.op == "batch_norm" else (result, None, None)

    def _stand_in(
        self, node: Node, site: NormSite, call: int, mean: Tensor | None, variance: Tensor | None
    ) -> Tensor:
        """In the place of an unknown input, a field with the mean and variance that the norm has learned."""
        if mean is None or variance is None:
            raise UnknownOperand
        known = self.frozen.get((site.name, call))
        if known is not None and known.stand_in is not None:
            return known.stand_in
        field_ = made_up_input(torch.empty(site.shapes[call], dtype=mean.dtype, device=mean.device))
        field_ = field_ - per_channel(channel_mean(field_), field_)
        size = (variance / channel_variance(field_).clamp_min(TINY)).sqrt()
        return per_channel(mean, field_) + per_channel(size, field_) * field_

    def _noise_site(self, node: Node, place: int, site: NoiseSite) -> Any:
        rate = self.rates.get(place, site.rate)
        if site.kind in ("attention_dropout", "recurrent_dropout") and node.has("dropout"):
            site = replace(site, kind="dropout")
        sources = self.frontier(node)
        explicit = not any(index in self._random for index in node.inputs)
        signals = [self.values[i] for i in sources if isinstance(self.values.get(i), Signal)]
        if len(signals) == 1 and rate is not None and tuple(signals[0].mean.shape) == node.shape:
            x = signals[0]
            mask = None if explicit else self._mask(node)
            shape = _noise.factor_shape(site, x.mean.shape, _drawn_shape(site, mask))
            if _noise.multiplies(site):
                if site.kind == "drop_block" and mask is not None and mask.dim() >= 3:
                    result = _noise.drop_blocks(x, site, rate, mask, self._masks(node, mask))
                else:
                    result = _noise.multiply(x, site, rate, shape, _factor_mean(site, mask))
                if mask is not None and mask.numel() == 1 < len(x.mean):
                    result = replace(result, doubts=result.doubts | {ONE_DRAW})
                return replace(result, unsure=unsure_behind(x, result)) if self._anchoring else result
            if site.additive and site.kind in ("gaussian", "uniform"):
                return _noise.add(x, site, rate)
            if site.kind in ("alpha_dropout", "feature_alpha_dropout"):
                return _noise.alpha_dropout(x, rate, shape)
        if not signals and self._lost(node):
            raise UnknownOperand
        if signals and (explicit or rate != 0):
            found = self._sampled(node, site, rate, signals, explicit)
            if found is not None:
                return found
        if rate != 0:
            self.untreated[place] = site
        fitting = [signal for signal in signals if tuple(signal.mean.shape) == node.shape]
        if not fitting:
            args, kwargs = self.operands(node)
            return _wrap(Call(node, args, kwargs).run(plain), False, frozenset({site.kind}))
        return fitting[0].but(mask=None, doubts=fitting[0].doubts | {site.kind})

    def _sampled(
        self, node: Node, site: NoiseSite, rate: float | None, signals: list[Signal], explicit: bool
    ) -> Any:
        """The result of noise that no rule is for, from several draws; None where that is not to be had."""
        changed = rate != site.rate
        if explicit:
            named = arguments_of(node)
            argument = next((name for name in _RATES if name in named), None)
            if changed and argument is None:
                return None
            named = {name: self.fill(value) for name, value in named.items()}
            if argument is not None and rate is not None:
                named[argument] = rate
            if any(name.isdigit() for name in named):
                return None  # an operation without a schema
            call = Call(node, (), named)
            return sampled(node.op, call.signals, call.run, _DRAWS) if call.signals else None
        if changed or site.kind in ("permutation", "weight_dropout"):
            return None
        steps = self._steps(node)
        if steps is None:
            return None
        return sampled(site.kind, signals, lambda pick: self._replay(steps, pick), _DRAWS)

    def _replay(self, steps: Sequence[int], pick: Callable[[Signal], Any]) -> Any:
        """The result of the last of some nodes, on one view of every signal."""
        local: dict[int, Any] = {}

        def fill(value: Any) -> Any:
            if isinstance(value, Ref):
                found = local[value.index] if value.index in local else self.fill(value)
                return pick(found) if isinstance(found, Signal) else found
            if isinstance(value, (tuple, list)):
                return type(value)(fill(item) for item in value)
            return value

        for index in steps:
            step = self.flow.nodes[index]
            kwargs = {key: fill(value) for key, value in step.kwargs.items()}
            local[index] = wide(execute(step, fill(step.args), kwargs))
            if overwrites(step) and step.args and isinstance(step.args[0], Ref):
                local[step.args[0].index] = local[index]
        return local[steps[-1]]

    def _steps(self, node: Node) -> list[int] | None:
        """What has to run again for another draw of a hand-written noise; None if that is too much."""
        found: set[int] = set()
        open_ = [node.index]
        while open_:
            index = open_.pop()
            if index in found:
                continue
            if len(found) >= _MOST_STEPS:
                return None
            found.add(index)
            open_.extend(i for i in self.flow.nodes[index].inputs if i in self._random)
        return sorted(found)

    def frontier(self, node: Node) -> list[int]:
        """The signals that a noise site reads, looking through the steps in which the noise was written."""
        found: list[int] = []
        open_ = list(node.inputs)
        seen: set[int] = set()
        while open_:
            index = open_.pop()
            if index in seen:
                continue
            seen.add(index)
            if index in self._noisy_paths:
                open_.extend(self.flow.nodes[index].inputs)
            elif isinstance(self.values.get(index), Signal):
                found.append(index)
        return found

    def _lost(self, node: Node) -> bool:
        """Whether what a noise site reads could not be computed."""
        lost = [i for i in node.inputs if isinstance(self.values.get(i), Unknown)]
        lost = [index for index in lost if index not in self._noisy_paths]
        for index in lost:
            self.blame(index, self.values[index])
        return bool(lost)

    def _mask(self, node: Node) -> Tensor | None:
        """What a hand-written site multiplies with, as one forward pass of the network would draw it."""
        for index in node.inputs:
            value = self.values.get(index)
            if not isinstance(value, Tensor) or not value.dim():
                continue
            if value.is_floating_point() and node.has("product"):
                return value
            if value.is_floating_point() or index in self._random:
                return self._factor(node, value)
        return None

    def _masks(self, node: Node, mask: Tensor) -> Tensor:
        """Further draws of a hand-written mask, one behind the other, so that its rate is known."""
        index = next((i for i in node.inputs if self.values.get(i) is mask), None)
        steps = None if index is None else self._steps(self.flow.nodes[index])
        if steps is None:
            return mask
        count = min(math.ceil(_SAMPLES / max(mask.shape[0] * mask.shape[1], 1)), _MOST_STEPS)
        try:
            return torch.cat([mask, *(self._replay(steps, plain) for _ in range(count - 1))])
        except (UnknownOperator, RuntimeError, TypeError, ValueError):
            return mask

    def _factor(self, node: Node, drawn: Tensor) -> Tensor | None:
        """What is left of ones: masks may say what to keep or what to drop, as numbers or as truth values."""
        try:
            factor = Call(node, *self.operands(node)).run(lambda signal: torch.ones_like(signal.mean))
        except (UnknownOperator, RuntimeError, TypeError, ValueError):
            return None
        if not isinstance(factor, Tensor) or not factor.is_floating_point():
            return None
        sizes = (1,) * (factor.dim() - drawn.dim()) + tuple(drawn.shape)
        return factor[tuple(slice(None, 1 if size == 1 else None) for size in sizes)]


def _drawn_shape(site: NoiseSite, mask: Tensor | None) -> tuple[int, ...] | None:
    """Shape of a mask without the axes that it was expanded over; None where its draw does not tell."""
    if mask is None or site.kind not in ("channel_dropout", "drop_path"):
        return None if mask is None else tuple(mask.shape)
    if bool((mask == mask.flatten()[0]).all()):
        return None
    repeated = [bool((mask == mask.narrow(axis, 0, 1)).all()) for axis in range(1, mask.dim())]
    rest = (1 if same else size for same, size in zip(repeated, mask.shape[1:], strict=True))
    return (mask.shape[0], *rest)


def _wrap(result: Any, floating: bool, doubts: frozenset[str]) -> Any:
    if isinstance(result, (tuple, list)):
        return tuple(_wrap(item, floating, doubts) for item in result)
    if isinstance(result, Tensor) and result.is_floating_point():
        return Signal(result, floating=floating, doubts=doubts)
    return result


def noisy_paths(flow: Flow) -> tuple[set[int], set[int], set[int]]:
    """Nodes that derive from the inputs, those that mix them with noise ahead of its site, and the noise."""
    sites = {site.node for site in flow.noises}
    signal: set[int] = set()
    random: set[int] = set()
    for node in flow.nodes:
        if node.kind == "input" or any(index in signal for index in node.inputs):
            signal.add(node.index)
        if node.index not in sites and (node.kind == "random" or any(i in random for i in node.inputs)):
            random.add(node.index)
    ahead: set[int] = set()
    open_ = [index for site in sites for index in flow.nodes[site].inputs]
    while open_:
        index = open_.pop()
        if index in random and index not in ahead:
            ahead.add(index)
            open_.extend(flow.nodes[index].inputs)
    return signal, random & signal & ahead, random


def gated(flow: Flow) -> bool:
    """Whether signals are multiplied by others that have one value for several of their elements."""
    signal, _, random = noisy_paths(flow)
    free, noise = signal - random, random | {site.node for site in flow.noises}

    def sizes(node: Node) -> set[int]:
        return {math.prod(flow.nodes[index].shape or ()) for index in node.inputs if index in free} - {1}

    products = (node for node in flow.nodes if node.has("product") and node.index not in noise)
    return any(len(sizes(node)) > 1 for node in products)


def _factor_mean(site: NoiseSite, mask: Tensor | None) -> float:
    """Mean of the factor that a hand-written site multiplies with."""
    if mask is None or not mask.numel():
        return 1.0
    if site.kind in ("gaussian", "uniform", "drop_block"):
        return float(mask.mean()) if mask.numel() >= 4096 else 1.0
    height = float(mask.abs().max())
    keep = 1 - (site.rate or 0.0)
    return keep * height if height > 0 else 1.0
