"""What runs in the place of a rewritten call: methods of the edited class."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from functools import wraps
from types import FunctionType
from typing import Any, Literal

from torch import nn

from varshift.fixes._noise_action import NEW_NOISE, NoiseAction
from varshift.fixes._rewrite_arguments import SIGNALS, Arguments, as_function
from varshift.fixes._rewrite_functions import unscripted

Where = Literal["before", "after"]
Method = Callable[..., Any]


def replaced_call(action: NoiseAction, arguments: Arguments, always: bool) -> Method:
    """A method that is called in the place of a function that makes noise.

    It takes the function and its arguments, and obeys the mode and the rate that they give: noise that was
    off stays off.

    Args:
        action: What becomes of the call.
        arguments: The arguments of the function.
        always: Whether noise without a mode of its own acts in evaluation, too.
    """
    if action.kind == "rate":
        return unscripted(_other_rate(action.value or 0.0, arguments))
    if action.kind == "remove" and not arguments.pure:
        return unscripted(_other_rate(0.0, arguments))
    if action.kind == "follow-mode":
        return unscripted(_following_mode(arguments))

    def call(self: nn.Module, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        if makes_noise(action) and is_attention(function):
            return action.attention(*args, **kwargs)
        signal = arguments.signal_of(args, kwargs)
        if action.kind == "remove":
            return signal
        acts = arguments.acts(self, function, args, kwargs, always)
        if action.kind == "rescale":
            result = function(*args, **kwargs)
            return result / action.value if acts else result
        result = action.act(signal, acts)
        if result is not signal and _is_inplace(arguments, function, args, kwargs):
            return signal.copy_(result)
        return result

    return unscripted(call)


def _other_rate(value: float, arguments: Arguments) -> Method:
    def call(self: nn.Module, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        layer = as_function(function) if isinstance(function, nn.Module) else None
        if layer is not None:
            signal = arguments.signal_of(args, kwargs)
            return layer(signal, value, function.training, function.inplace)
        rate = arguments.rate
        if rate is None:
            raise TypeError("a call whose rate was changed has no argument for it.")
        if arguments.is_off(args, kwargs):
            return function(*args, **kwargs)
        args, kwargs = rate.to(value, args, kwargs)
        return function(*args, **kwargs)

    return call


def _following_mode(arguments: Arguments) -> Method:
    def call(self: nn.Module, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        if self.training:
            return function(*args, **kwargs)
        if arguments.mode is not None:  # of a norm, too: its running statistics take over
            args, kwargs = arguments.mode.to(False, args, kwargs)
        elif arguments.pure:
            return arguments.signal_of(args, kwargs)
        elif arguments.rate is not None:
            args, kwargs = arguments.rate.to(0.0, args, kwargs)
        return function(*args, **kwargs)

    return call


def _is_inplace(arguments: Arguments, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    if isinstance(function, nn.Module):
        return bool(getattr(function, "inplace", False))
    if arguments.inplace is None:
        return bool(kwargs.get("inplace", False))
    return bool(arguments.inplace.of(args, kwargs))


def linked_call(helper: Any, private: FunctionType) -> Method:
    """A method that runs a private copy of a helper function where the helper would have run.

    Another function in its place, such as another implementation of attention that was chosen since, runs as
    it is.
    """

    def call(self: nn.Module, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        if function is helper:
            return private(self, *args, **kwargs)
        return function(*args, **kwargs)

    return unscripted(call)


def noisy_call(action: NoiseAction, where: Where) -> Method:
    """A method that is called in the place of a function, with noise on its first tensor or on its result."""

    def call(self: nn.Module, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        if where == "after":
            return _on_first(function(*args, **kwargs), action, self.training)
        args, kwargs = _with_noise(args, kwargs, action, self.training)
        return function(*args, **kwargs)

    return unscripted(call)


def noisy_receiver(action: NoiseAction) -> Method:
    """A method that adds noise to the tensor whose method is called: ``x.mean(-1)``."""

    def receiver(self: nn.Module, value: Any) -> Any:
        if not _is_signal(value):
            raise TypeError(f"noise was to go in front of a method of a tensor, and this is a {type(value)}.")
        return action.act(value, self.training)

    return unscripted(receiver)


def noisy_forward(forward: Any, action: NoiseAction, where: Where) -> Any:
    """A `forward` with noise on the first tensor that it takes, or on its result."""

    @wraps(forward)
    def noisy(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if where == "after":
            return _on_first(forward(self, *args, **kwargs), action, self.training)
        args, kwargs = _with_noise(args, kwargs, action, self.training)
        return forward(self, *args, **kwargs)

    return unscripted(noisy)


def is_attention(function: Any) -> bool:
    """Whether a function is torch's fused attention, whose weights can be given other noise."""
    return function is nn.functional.scaled_dot_product_attention


def makes_noise(action: NoiseAction) -> bool:
    """Whether an action is noise that can be put where none was."""
    return action.kind in NEW_NOISE


def _is_signal(value: Any) -> bool:
    return isinstance(value, SIGNALS)


def _with_noise(
    args: tuple[Any, ...], kwargs: dict[str, Any], action: NoiseAction, training: bool
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    for index, value in enumerate(args):
        if _is_signal(value):
            return (*args[:index], action.act(value, training), *args[index + 1 :]), kwargs
    for name, value in kwargs.items():
        if _is_signal(value):
            return args, {**kwargs, name: action.act(value, training)}
    raise TypeError("noise was to go in front of a call, and it was given no tensor.")


def _on_first(result: Any, action: NoiseAction, training: bool) -> Any:
    """A result with noise on its first tensor: a tensor, or a tuple, a list or a mapping of several."""
    if _is_signal(result):
        return action.act(result, training)
    if not training:
        return result
    if isinstance(result, (tuple, list)):
        for index, value in enumerate(result):
            if _is_signal(value):
                noisy = (*result[:index], action.act(value, training), *result[index + 1 :])
                return getattr(type(result), "_make", type(result))(noisy)  # named tuples have `_make`
    elif isinstance(result, dict):
        for name, value in result.items():
            if _is_signal(value):
                result = copy(result)
                result[name] = action.act(value, training)
                return result
    raise TypeError("noise was to go after a call, and it returned no tensor.")
