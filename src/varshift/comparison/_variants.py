"""Variants of a network and its training: those with a name, and the user's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final, cast

from torch import nn

from varshift._errors import VarshiftError
from varshift.rules import CURES, Cure

REFERENCE: Final = "as-is"
Build = Callable[..., "nn.Module | None"]


@dataclass(frozen=True, slots=True)
class Variant:
    """What is tried, as a change of the network that is compared.

    Attributes:
        name: Its name in the table.
        cures: Cures to carry out on the network before it is trained: codes of `varshift.rules.CURES`, or
            `varshift.Cure` with target and options.
        build: A function from a copy of the network to the network to train; it may change its argument and
            return nothing. One that takes no argument makes the network, and parameters of the same name and
            shape then start from the values that those of the other variants have.
        noise: Where in the training noise acts, as shares of it: ``(0, 0.5)`` is the first half.
        recalibrate: Whether running statistics are re-estimated without noise after the training.
        says: What it is, in a few words.
    """

    name: str
    cures: tuple[str | Cure, ...] = ()
    build: Build | None = None
    noise: tuple[float, float] = (0.0, 1.0)
    recalibrate: bool = False
    says: str = ""

    def __post_init__(self) -> None:
        start, end = self.noise
        if not 0 <= start < end <= 1:
            raise VarshiftError(
                f"noise={self.noise!r} of the variant {self.name!r} must be two shares of the training, "
                "0 <= start < end <= 1."
            )

    @property
    def whole(self) -> bool:
        """Whether noise acts all the time."""
        return self.noise == (0.0, 1.0)


def _cured(name: str, says: str, code: str, **options: Any) -> Variant:
    return Variant(name, (Cure(code, says, "unsafe", None, options),), says=says)


_LIST = (
    Variant(REFERENCE, says="the network as it is"),
    _cured("no-noise", "all noise removed", "remove-noise"),
    _cured("half-rate", "every rate halved", "lower-rate", factor=0.5),
    _cured("noise-after-last-norm", "noise moved after the last norm", "move-noise", to="head"),
    _cured("slot", "residual noise moved before its branch's last weight", "move-noise", to="branch-slot"),
    _cured("uniform", "dropout swapped for uniform noise (Uout)", "swap-noise", to="uniform"),
    Variant("early-dropout", noise=(0.0, 0.5), says="noise in the first half of the training only"),
    Variant("late-dropout", noise=(0.5, 1.0), says="noise in the second half of the training only"),
    _cured("independent-components", "norm and dropout before the weights", "insert-components"),
    _cured("filter-response-norm", "norms without batches (FRN)", "swap-norm", to="filter_response_norm"),
    _cured("group-norm", "group norm in the place of batch norm", "swap-norm", to="group_norm"),
    _cured("batch-free-norm", "one norm of each block without batch statistics", "batch-free-norm"),
    Variant("recalibrated", recalibrate=True, says="statistics re-estimated after the training"),
)
VARIANTS: Final[Mapping[str, Variant]] = MappingProxyType({variant.name: variant for variant in _LIST})

# Cheap to make on most networks, and each answers a question of its own.
DEFAULT: Final = (REFERENCE, "no-noise", "half-rate", "noise-after-last-norm", "uniform", "recalibrated")

Own = Variant | Build | str | Sequence[str | Cure]


def variants_of(asked: Sequence[str | Variant] | Mapping[str, Own] | None) -> dict[str, Variant]:
    """The variants by name, the reference first.

    Args:
        asked: Names and variants; or a mapping of names to a `Variant`, the name of one, a function (see
            `Variant.build`), or a list of cures. None for those of `DEFAULT`.

    Raises:
        VarshiftError: If there is no variant of a name, a name comes twice, or a value is none of these.
    """
    items: list[tuple[str, Any]]
    if asked is None:
        items = [(name, name) for name in DEFAULT]
    elif isinstance(asked, Mapping):
        items = list(asked.items())
    elif isinstance(asked, str) or not isinstance(asked, Sequence):
        raise VarshiftError(f"variants={asked!r} must be a list of names, or a mapping of names to variants.")
    else:
        items = [(one.name if isinstance(one, Variant) else one, one) for one in asked]
    chosen = {REFERENCE: VARIANTS[REFERENCE]}
    named = set()
    for name, value in items:
        if name in named:
            raise VarshiftError(f"variants: {name!r} comes twice; give one of them another name.")
        named.add(name)
        chosen[name] = _variant(name, value)
    return chosen


def _variant(name: Any, value: Any) -> Variant:
    if not isinstance(name, str):
        raise VarshiftError(f"variants: {name!r} must be a name or a Variant.")
    if isinstance(value, Variant):
        return _known(replace(value, name=name))
    if isinstance(value, str):
        if value not in VARIANTS:
            raise VarshiftError(f"variants: there is none named {value!r}; there are {', '.join(VARIANTS)}.")
        return replace(VARIANTS[value], name=name)
    if isinstance(value, Cure):
        return _known(Variant(name, (value,), says=value.name))
    if isinstance(value, Sequence) and value and all(isinstance(cure, (str, Cure)) for cure in value):
        codes = (cure.code if isinstance(cure, Cure) else cure for cure in value)
        return _known(Variant(name, tuple(value), says=", ".join(codes)))
    if callable(value):
        return Variant(name, build=cast(Build, value), says=getattr(value, "__name__", type(value).__name__))
    raise VarshiftError(
        f"variants: {name!r} is a {type(value).__name__}: give a function from a network to a network, a "
        "list of cures, a Variant, or the name of one."
    )


def _known(variant: Variant) -> Variant:
    """The variant, refused where one of its cures is misspelt."""
    for cure in variant.cures:
        code = cure.code if isinstance(cure, Cure) else cure
        if code not in CURES:
            raise VarshiftError(
                f"{code!r} of the variant {variant.name!r} is no kind of cure: the kinds are "
                f"{', '.join(CURES)}."
            )
    return variant


def takes_network(build: Build) -> bool:
    """Whether a function wants the network, rather than making one from nothing."""
    try:
        parameters = inspect.signature(build).parameters.values()
    except (TypeError, ValueError):
        return True
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return any(
        item.kind is item.VAR_POSITIONAL or (item.kind in positional and item.default is item.empty)
        for item in parameters
    )
