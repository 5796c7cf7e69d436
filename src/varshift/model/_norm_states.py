"""Where a norm keeps its running statistics, and in which form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Form = Literal[
    "variance", "deviation", "inverse_deviation", "log_variance", "second_moment", "root_mean_square"
]
Layout = Literal["second", "last", "samples", "all"]
Place = tuple[str, int]  # an operation, and the number of its call within a module and all inside it


@dataclass(frozen=True, slots=True)
class NormStates:
    """Where a norm keeps its running statistics.

    Attributes:
        mean: Canonical name of the state that holds the running mean, ``"blocks.2.ema_mean"``; None for a
            norm that keeps none.
        spread: Name of the state that holds the running variance in some form; None for a norm that only
            subtracts a mean.
        form: What the second state holds: ``"variance"``, ``"deviation"`` (its root),
            ``"inverse_deviation"``, ``"log_variance"``, ``"second_moment"`` (about zero), or
            ``"root_mean_square"``.
        channels: Number of channels.
        rows: Number of rows of statistics: one, or one for each kind of sample.
        layout: Where the channels of the norm's input are: in its ``"second"`` dimension, in its ``"last"``,
            in all dimensions but the first (``"samples"``: one statistic for each element of a sample), or
            ``"all"`` values are one channel.
        eps: What the norm adds to a variance before it stores it in another form.
        momentum: Weight of a batch in the running statistics; None when it is not constant or unknown.
        per_sample: Whether it averages the statistics of single samples, as an instance norm does.
        own_input: Whether what it normalises is the input of its module.
        train_places: Otherwise the operations that return what it normalises when the network trains, one for
            each call.
        eval_places: The same in evaluation.
        unsupported: Why varshift can recognise this norm and not measure it; None when it can.
    """

    mean: str | None
    spread: str | None
    form: Form = "variance"
    channels: int = 0
    rows: int = 1
    layout: Layout = "second"
    eps: float = 0.0
    momentum: float | None = None
    per_sample: bool = False
    own_input: bool = True
    train_places: tuple[Place, ...] = ()
    eval_places: tuple[Place, ...] = ()
    unsupported: str | None = None


def stored(form: Form, mean: Tensor, variance: Tensor, eps: float = 0.0) -> Tensor:
    """A variance in the form in which a norm keeps it."""
    if form == "variance":
        return variance
    if form in ("second_moment", "root_mean_square"):
        square = variance + mean.square() + eps
        return square if form == "second_moment" else square.sqrt()
    if form == "log_variance":
        return (variance + eps).log()
    return (variance + eps).sqrt() if form == "deviation" else (variance + eps).rsqrt()


def variance_of(form: Form, mean: Tensor, state: Tensor, eps: float = 0.0) -> Tensor:
    """The variance that a state holds in some form: the inverse of `stored`."""
    if form == "variance":
        return state
    if form in ("second_moment", "root_mean_square"):
        return (state if form == "second_moment" else state.square()) - mean.square() - eps
    if form == "log_variance":
        return state.exp() - eps
    return (state.square() if form == "deviation" else state.square().reciprocal()) - eps
