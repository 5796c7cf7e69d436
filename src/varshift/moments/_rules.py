"""What an operation does to noisy signals: one small function per kind of operation, in one registry."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from varshift.flow import Node, execute, is_pointwise, operations

from . import _elementwise
from ._call import Call, plain, swap, weight_key, with_noise
from ._masks import commutes, of_sum, past_linear, side_by_side
from ._signal import TINY, Signal, Unknown, channel_mean, channel_power, channel_variance, even, per_channel

Values = Callable[[Any], Any]
Rule = Callable[[Node, "Call"], Signal]
REGISTRY: dict[str, Rule] = {}

_REPEATS = operations("expansion", "indexing") | {"unfold", "im2col", "reflection_pad1d", "reflection_pad2d"}
_DIVIDES = Unknown("it divides by noise")
_FAR, _MOST_NEAR = 3.0, 0.02  # standard deviations from 0, and the share of elements that may be nearer
_LEFT = {"mm": "self", "matmul": "self", "bmm": "self", "addmm": "mat1", "_sparse_mm": "sparse"}
_MOST_CHANGE = 0.1  # by noise, of a divisor: at .13 ratios were off by a factor of 10, at .07 by 4 %
_PAIRS = 4  # of draws with opposite signs for operations without a rule


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Registers a rule under the names of its operators."""

    def register(function: Rule) -> Rule:
        REGISTRY.update(dict.fromkeys(names, function))
        return function

    return register


def propagate(call: Call) -> Any:
    """The result of a call on noisy signals: a signal, or several for an operation with several results."""
    found = REGISTRY.get(call.node.op)
    if found is None and len(call.signals) == 1 and _is_elementwise(call.node):
        found = _activation
    return found(call.node, call) if found else by_difference(call.node, call)


def _is_elementwise(node: Node) -> bool:
    """Whether a node is a function of single elements; of what is not in the vocabulary torch tells."""
    return node.has("elementwise") or (node.kind == "other" and is_pointwise(node))


@rule(*operations("weighted"), "bmm", "embedding", "_sparse_mm")
def _weight(node: Node, call: Call) -> Signal:
    """``n_o = sum_i w_oi^2 n_i``: exact for noise that is independent from unit to unit.

    For noise that units share, the draw alone tells how large it is, but squared weights still tell where in
    the channel. To take it as the same everywhere makes ratios of trained networks several times as wrong.
    """
    call = call.settled() if len(call.signals) > 1 else call
    named = call.named()
    weight = weight_key(named)
    if len(call.signals) != 1:
        return by_difference(node, call)
    if weight is None:
        return _mixed_samples(node, call)
    # By name; what is left out has a default. `bias` of a convolution may be None and has none.
    plain = Call(node, (), named)
    for bias in ("bias", "self"):
        if isinstance(plain.kwargs.get(bias), Tensor):
            plain.kwargs[bias] = torch.zeros_like(plain.kwargs[bias])
    given, groups = call.signals[0], named.get("groups", 1)
    mixes = groups == 1 or groups != given.mean.shape[1] or named[weight].shape[1] != 1
    if commutes(given, mixes):
        return past_linear(call, lambda x: plain.run(lambda _: x))
    squared = Call(node, (), plain.kwargs | {weight: call.squares()})
    exact = given.exact and given.independent
    draw = plain.run(lambda signal: signal.draw)
    return call.linear(squared.run(lambda signal: signal.spread()), draw=draw, exact=exact)


def _mixed_samples(node: Node, call: Call) -> Signal:
    """A signal with a matrix in front of it, which mixes its samples, as the neighbours of a graph."""
    named, given = call.named(), call.signals[0]
    key = _LEFT.get(node.op)
    if key is None or not isinstance(named.get(key), Tensor):
        return call.linear(None)
    squares = named | {key: named[key] * named[key]}
    if key == "mat1" and isinstance(named["self"], Tensor):
        squares["self"] = torch.zeros_like(named["self"])
    spread = Call(node, (), squares).run(lambda signal: signal.spread())
    return call.linear(spread, exact=given.exact and given.independent)


@rule(*operations("view"))
def _view(node: Node, call: Call) -> Any:
    name = node.op
    if len(call.signals) != 1:
        return call.linear(None)
    parts = [call.run(pick) for pick in (plain, with_noise)]
    filled = name in ("constant_pad_nd", "pad") and call.named().get("value")
    parts.append(even(parts[1] - parts[0]) if filled else call.run(_spread))
    if isinstance(parts[0], (tuple, list)):
        return tuple(_part(call, *views) for views in zip(*parts, strict=True))
    same = node.has("keeping") and parts[0].shape == call.signals[0].mean.shape
    return _part(call, *parts).but(
        mask=call.signals[0].mask if same else None, sized=same and call.signals[0].spread_is_sized
    )


def _part(call: Call, mean: Tensor, total: Tensor, spread: Tensor) -> Signal:
    given, name = call.signals[0], call.node.op
    exact = given.exact and not name.endswith("pad_nd")
    independent = given.independent and name not in _REPEATS
    return Signal(mean, spread, total - mean, None, call.floating(), call.doubts(), exact, independent)


def _spread(signal: Signal) -> Tensor:
    return signal.spread()


@rule(*operations("concatenation"))
def _concatenation(node: Node, call: Call) -> Signal:
    exact = all(signal.exact or not signal.noisy for signal in call.signals)
    given = call.one()  # several parts may hold the same noise, unless each has just met its own
    noisy = [signal for signal in call.signals if signal.noisy]
    own = [id(s.mask) for s in noisy if s.mask is not None and not s.mask.base.noisy and s.independent]
    independent = given.independent if given is not None else len(set(own)) == len(noisy)
    spread, draw = _alongside(call, Signal.spread), _alongside(call, Signal.deviation)
    result = call.linear(spread, draw=draw, exact=exact, independent=independent)
    return result.but(mask=side_by_side(call, result))


def _alongside(call: Call, view: Callable[[Signal], Tensor]) -> Tensor | None:
    """Views of the noise of all parts side by side; what is no signal has none."""
    if not call.args:
        return None
    args, kwargs = swap((call.args, call.kwargs), view)
    first = [
        torch.zeros_like(item) if isinstance(given, Tensor) else item
        for item, given in zip(args[0], call.args[0], strict=True)
    ]
    return execute(call.node, (first, *args[1:]), kwargs)


@rule(*operations("term"))
def _sum(node: Node, call: Call) -> Signal:
    named = call.named()
    if named.get("alpha", 1) != 1:
        return call.linear(None)
    shape = torch.broadcast_shapes(*(signal.mean.shape for signal in call.signals))
    noisy = [signal for signal in call.signals if signal.noisy]
    plus = node.op == "add"
    given = noisy[0] if len(noisy) == 1 and noisy[0].mean.shape == shape else None
    result = call.linear(
        _total_of([signal.spread().expand(shape) for signal in noisy]),
        draw=_total_of([signal.draw.expand(shape) for signal in noisy if signal.draw is not None])
        if plus
        else None,
        exact=given is not None and given.exact,
        independent=given is not None and given.independent,
    )
    return (
        result.but(mask=of_sum(named, shape), sized=given is not None and given.spread_is_sized)
        if plus
        else result
    )


def _total_of(terms: Sequence[Tensor]) -> Tensor:
    return reduce(torch.add, terms)


@rule(*operations("product"))
def _product(node: Node, call: Call) -> Any:
    named = call.named()
    divisor = None if node.op == "mul" else named.get("other")
    if isinstance(divisor, Signal) and not divisor.noisy:  # a signal by the number of its terms, say
        call = call.settled()
        named = call.named()
    elif isinstance(divisor, Signal) and not _steady(divisor):
        return _DIVIDES
    if len(call.signals) == 2:
        return _gate(call) if node.op == "mul" else by_difference(node, call)
    if isinstance(named.get("other"), Signal) and node.op != "mul":
        return by_difference(node, call)  # a constant divided by the signal
    other = named["other"] if not isinstance(named["other"], Signal) else named["self"]
    squared = other.square() if isinstance(other, Tensor) else other * other
    spread = call.signals[0].spread()
    times = node.op == "mul"
    given = call.signals[0]
    result = call.linear(
        spread * squared if times else spread / squared, exact=given.exact, independent=given.independent
    )
    mask = given.mask
    if mask is None or isinstance(other, Tensor):
        return result
    factor = torch.full((), other if times else 1 / other, dtype=spread.dtype, device=spread.device)
    return result.but(mask=mask.moved(factor, None))


def _gate(call: Call) -> Signal:
    """A product of two signals: ``E[ab] = E[a] E[b] + Cov(a, b)``.

    The covariance, one number per channel, is that of the draws; without it the variance would be
    ``a^2 n_b + b^2 n_a + n_a n_b``, which gives the map.
    """
    first, second = call.signals
    mean = first.mean * second.mean
    shared = (first.total - first.mean) * (second.total - second.mean)
    mean = mean + per_channel(channel_mean(shared), mean)
    a, b = first.spread(), second.spread()
    variance = first.mean.square() * b + second.mean.square() * a + a * b
    total = first.total * second.total
    return Signal(mean, variance, total - mean, None, call.floating(), call.doubts())


@rule(*operations("average_pool", "resampling", "reduction"), "cumsum")
def _average(node: Node, call: Call) -> Signal:
    pooled = node.has("average_pool")
    if pooled and len(call.signals) == 1 and commutes(call.signals[0], mixes=False):
        return past_linear(call, lambda x: call.run(lambda _: x))
    return call.linear(None)


@rule(*operations("dropout"))
def _no_dropout(node: Node, call: Call) -> Any:
    """A dropout that is no noise site: it drops nothing."""
    return (call.signals[0], None) if node.op == "native_dropout" else call.signals[0]


def _steady(x: Signal) -> bool:
    """Whether noise hardly changes a signal and leaves it far from 0, so that it may be divided by.

    A divisor goes together with what it divides, as the norm of a sample with the sample. Draws of both do
    not keep that, which does no harm only where the divisor is nearly the same in all of them.
    """
    spread, square = x.spread(), x.mean.square()
    near = (spread * _FAR**2 > square).to(x.mean.dtype).mean()
    return bool((near < _MOST_NEAR) & (spread.mean() < _MOST_CHANGE**2 * square.mean()))


@rule("reciprocal", "rsqrt", "log", "log2", "log10", "pow")
def _singular(node: Node, call: Call) -> Any:
    """Functions that have no moments where noise reaches 0."""
    exponent = call.named().get("exponent", -1)
    singular = not isinstance(exponent, (int, float)) or exponent < 0
    if singular and not all(_steady(signal) for signal in call.signals):
        return _DIVIDES
    return _activation(node, call) if len(call.signals) == 1 else by_difference(node, call)


def _activation(node: Node, call: Call) -> Any:
    def function(tensor: Tensor) -> Tensor:
        return call.run(lambda _: tensor)

    result = _elementwise.apply(node.op, function, call.named(), call.signals[0])
    if result is None:
        return by_difference(node, call)
    given = call.signals[0]
    return result.but(source=(given.but(sized=given.sized), function))


def sampled(
    name: str, signals: Sequence[Signal], function: Callable[[Callable[[Signal], Any]], Any], draws: int = 0
) -> Any:
    """The result of any operation on noisy signals, by running it on several draws of their noise.

    Args:
        name: The operation.
        signals: What it reads.
        function: Runs it on one view of every signal.
        draws: Number of draws, for an operation with noise of its own.
    """
    samples = len(signals[0].mean) if signals[0].mean.dim() else 1
    alone = len(signals) == 1
    runs = []
    for _ in range(draws // 2 or _PAIRS):
        order = torch.randperm(samples, device=signals[0].mean.device)
        for sign in (1.0, -1.0):  # both signs, so that the average is free of what is linear in the noise
            runs.append(function(lambda signal, o=order, s=sign: signal.replica(o, s, alone=alone)))
    total = function(with_noise)
    doubts = frozenset().union(*(signal.doubts for signal in signals)) | {name}
    floating = all(signal.floating for signal in signals)
    if isinstance(total, (tuple, list)):
        return tuple(_over_draws(parts, floating, doubts) for parts in zip(total, *runs, strict=True))
    return _over_draws((total, *runs), floating, doubts)


def by_difference(node: Node, call: Call) -> Any:
    """Any operation: run with several draws of the noise."""
    return sampled(node.op, call.signals, call.run)


def _over_draws(values: Sequence[Any], floating: bool, doubts: frozenset[str]) -> Any:
    """Mean and variance over draws; the first of them is the draw that goes on."""
    total = values[0]
    if not isinstance(total, Tensor):
        return total
    if not total.is_floating_point():
        chosen = total.dtype == torch.bool or all(torch.equal(total, run) for run in values[1:])
        return total if chosen else Unknown("which elements it picks depends on noise")
    # A draw may leave the domain of an operation, as a root's, where the signal itself does not.
    runs = torch.stack([torch.where(torch.isfinite(run), run, total) for run in values[1:]])
    mean, variance = runs.mean(0), runs.var(0, correction=0)
    draw = total - mean
    if mean.dim() > 1:
        # What is left of the noise in an average of so few draws must count as noise, not as data.
        left = channel_mean((runs[0::2] + runs[1::2]).var(0)) / (2 * len(runs))
        seen, noise = channel_variance(mean), channel_mean(variance) + left
        shrink = (1 - left / seen.clamp_min(TINY)).clamp(0.25, 1).sqrt()
        middle = per_channel(channel_mean(mean), mean)
        mean = middle + (mean - middle) * per_channel(shrink, mean)
        draw = draw * per_channel((noise / channel_power(draw).clamp_min(TINY)).sqrt(), draw)
    return Signal(mean, variance, draw, None, floating, doubts)
