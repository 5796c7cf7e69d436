"""Where a call has its signal, its rate and its mode among its arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import get_testing_overrides

_RATES = (
    *("p", "rate", "prob", "drop", "dropout", "dropout_p", "drop_p", "drop_prob", "dropout_prob"),
    *("drop_rate", "dropout_rate", "drop_path", "drop_path_rate", "drop_connect_rate", "attention_dropout"),
    *("attn_dropout", "attn_drop", "drop_probability", "dropout_probability", "hidden_dropout"),
)
SIGNALS = (Tensor, torch.fx.Proxy)  # what a network is fed while it is traced symbolically counts, too
_MODES = ("training", "train", "is_training")
_FUNCTIONS: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Dropout: F.dropout,
    nn.Dropout1d: F.dropout1d,
    nn.Dropout2d: F.dropout2d,
    nn.Dropout3d: F.dropout3d,
    nn.AlphaDropout: F.alpha_dropout,
    nn.FeatureAlphaDropout: F.feature_alpha_dropout,
}


@dataclass(frozen=True, slots=True)
class Argument:
    """An argument of a call: its position, None where it goes by name only, its name and its default."""

    index: int | None
    name: str
    default: Any = None

    def of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Its value in a call."""
        if self.index is not None and self.index < len(args):
            return args[self.index]
        return kwargs.get(self.name, self.default)

    def to(self, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """The arguments of a call with another value for it."""
        if self.index is not None and self.index < len(args):
            return (*args[: self.index], value, *args[self.index + 1 :]), kwargs
        return args, {**kwargs, self.name: value}


@dataclass(frozen=True, slots=True)
class Arguments:
    """The arguments of a function that makes noise, as far as its signature tells.

    Attributes:
        known: Whether there is a signature.
        signal: What the noise acts on.
        rate: How strong it is.
        mode: Whether it acts.
        inplace: Whether it writes its result to the signal.
        pure: Whether the function does nothing but make noise, as far as that can be told: its rate, if it
            has one, is the argument after the signal.
    """

    known: bool = False
    signal: Argument | None = None
    rate: Argument | None = None
    mode: Argument | None = None
    inplace: Argument | None = None
    pure: bool = True

    def signal_of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the noise acts on in a call.

        Raises:
            TypeError: If the call has no tensor.
        """
        given = self.signal.of(args, kwargs) if self.signal is not None else None
        for value in (given, *args, *kwargs.values()):
            if isinstance(value, SIGNALS):
                return value
        raise TypeError("a call whose noise was replaced was given no tensor.")

    def is_off(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether a call has a rate of zero, as in ``dropout_p=self.p if self.training else 0.0``."""
        rate = self.rate.of(args, kwargs) if self.rate is not None else None
        return isinstance(rate, (int, float)) and rate <= 0

    def acts(
        self,
        owner: nn.Module,
        function: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        always: bool = False,
    ) -> bool:
        """Whether the noise of a call acts: by the call's own mode and rate, else by the mode of its module.

        Args:
            owner: The module that makes the call.
            function: What is called.
            args: Its arguments by position.
            kwargs: Its arguments by name.
            always: Whether it acts in both modes of its module, unless the call says otherwise.
        """
        if isinstance(function, nn.Module):
            return function.training
        if self.is_off(args, kwargs):
            return False
        if self.mode is not None:
            return bool(self.mode.of(args, kwargs))
        for name in _MODES:
            if name in kwargs:
                return bool(kwargs[name])
        if not self.known:  # a flag by position, as in ``drop(x, 0.1, self.training)``
            for value in args:
                if isinstance(value, bool):
                    return value
        return always or owner.training


@lru_cache(maxsize=1024)
def arguments_of(function: Any, bound: bool = False) -> Arguments:
    """The arguments of a function.

    Args:
        function: The function, or what decorators made of it.
        bound: Whether its first argument is given by the attribute that it is called by.
    """
    parameters = _parameters(function)
    if parameters is None:
        return Arguments()
    plain = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)][bound:]
    places = {p.name: Argument(i, p.name, _default(p)) for i, p in enumerate(plain)}
    places |= {p.name: Argument(None, p.name, _default(p)) for p in parameters if p.kind == p.KEYWORD_ONLY}
    rate = next((places[name] for name in places if name in _RATES), None)
    mode = next((places[name] for name in _MODES if name in places), None)
    required = sum(p.default is p.empty for p in plain[: rate.index if rate is not None else None])
    return Arguments(
        known=bool(places),
        signal=places[plain[0].name] if plain else None,
        rate=rate,
        mode=mode,
        inplace=places.get("inplace"),
        pure=required == 1 if rate is not None else True,
    )


def as_function(module: nn.Module) -> Callable[..., Tensor] | None:
    """The function of a dropout layer of torch, None for other modules."""
    return _FUNCTIONS.get(type(module))


def _parameters(function: Any) -> list[inspect.Parameter] | None:
    if isinstance(function, nn.Module) or not callable(function):
        return None
    try:
        return list(inspect.signature(function).parameters.values())
    except (ValueError, TypeError):
        pass
    twin = get_testing_overrides().get(function)  # torch's own list of the signatures of its built-ins
    return None if twin is None else list(inspect.signature(twin).parameters.values())


def _default(parameter: inspect.Parameter) -> Any:
    return None if parameter.default is parameter.empty else parameter.default
