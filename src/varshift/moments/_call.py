"""A call of an operation on signals, and the views of a signal that it can be run on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from varshift.flow import Node, arguments_of, execute, lent_arguments

from ._signal import Signal, even

_WEIGHT_KEYS = ("weight", "mat2", "other")


class Call:
    """A call with its operands: plain tensors and signals."""

    def __init__(self, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.node = node
        self.args, self.kwargs = _without_shape_arguments(node, args, kwargs)
        self.signals: list[Signal] = []
        self._squares: Tensor | None = None
        self._settled: frozenset[str] = frozenset()  # doubts of operands that are signals no more
        _visit((self.args, self.kwargs), self.signals.append)

    def run(self, pick: Callable[[Signal], Any]) -> Any:
        """Runs the operation on one view of every signal."""
        args, kwargs = swap((self.args, self.kwargs), pick)
        return execute(self.node, args, kwargs)

    def named(self) -> dict[str, Any]:
        """The operands by name; signals stand as they are."""
        names = list(arguments_of(self.node))
        given = dict(zip(names, self.args, strict=False)) | self.kwargs
        return arguments_of(self.node) | given

    def squares(self) -> Tensor | None:
        """Squares of the weights, if it has any."""
        if self._squares is None:
            named = self.named()
            key = weight_key(named)
            self._squares = None if key is None else named[key].square()
        return self._squares

    def doubts(self) -> frozenset[str]:
        """The doubts of all operands."""
        return self._settled.union(*(signal.doubts for signal in self.signals))

    def settled(self) -> Call:
        """The same call with plain tensors in the place of signals without noise."""

        def settle(signal: Signal) -> Signal | Tensor:
            return signal if signal.noisy else signal.mean

        args, kwargs = swap((self.args, self.kwargs), settle)
        call = Call(self.node, args, kwargs)
        call._settled = self.doubts()
        return call

    def floating(self) -> bool:
        """Whether every signal still has the scale of a made-up input."""
        return all(signal.floating for signal in self.signals)

    def linear(
        self,
        variance: Tensor | None,
        *,
        draw: Tensor | None = None,
        exact: bool = False,
        independent: bool = False,
    ) -> Signal:
        """The result of an operation that is linear in all signals together.

        Args:
            variance: Its noise variance, up to one factor per channel; None for that of the draw.
            draw: Its draw, if that is known already.
            exact: Whether the variance is right in size.
            independent: Whether the noise of each element is its own.
        """
        mean = self.run(plain)
        if draw is None or draw.shape != mean.shape:
            draw = torch.sub(self.run(with_noise), mean)
        found = Signal(mean, variance, draw, None, self.floating(), self.doubts(), exact, independent)
        known = variance is not None and variance.shape == mean.shape
        return found if known else found.but(variance=even(draw), exact=False, sized=True)

    def one(self) -> Signal | None:
        """The noisy operand, if there is just one."""
        noisy = [signal for signal in self.signals if signal.noisy]
        return noisy[0] if len(noisy) == 1 else None


def plain(signal: Signal) -> Tensor:
    """A signal as it is without its noise."""
    return signal.mean


def with_noise(signal: Signal) -> Tensor:
    """A draw of a signal with its noise."""
    return signal.total


def weight_key(named: Mapping[str, Any]) -> str | None:
    """Under which name the operands of a call hold its weights, if they do."""
    return next((key for key in _WEIGHT_KEYS if isinstance(named.get(key), Tensor)), None)


def _without_shape_arguments(
    node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The operands; a signal that only lends its shape or type is no signal."""
    if node.has("shape_only"):
        return swap(args, plain), swap(kwargs, plain)
    for lender in lent_arguments(node.op):
        place = list(arguments_of(node)).index(lender) if lender in arguments_of(node) else len(args)
        if place < len(args):
            args = (*args[:place], swap(args[place], plain), *args[place + 1 :])
        elif lender in kwargs:
            kwargs = kwargs | {lender: swap(kwargs[lender], plain)}
    return args, kwargs


def _visit(value: Any, function: Callable[[Signal], Any]) -> None:
    if isinstance(value, Signal):
        function(value)
    elif isinstance(value, (tuple, list)):
        for item in value:
            _visit(item, function)
    elif isinstance(value, dict):
        for item in value.values():
            _visit(item, function)


def swap(value: Any, pick: Callable[[Signal], Any]) -> Any:
    """Nested operands with `pick(signal)` in the place of every signal."""
    if isinstance(value, Signal):
        return pick(value)
    if isinstance(value, (tuple, list)):
        return type(value)(swap(item, pick) for item in value)
    if isinstance(value, dict):
        return {key: swap(item, pick) for key, item in value.items()}
    return value
