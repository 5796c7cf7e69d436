"""Handle of a recalibration: what it changed, what that did to the loss, and the way back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from varshift.model import Holder, State, protected, release_signals, watch_signals, write
from varshift.probe._effect import Effect
from varshift.probe._types import Leverage

# A place that holds a statistic, and a value for it: `model.to` may replace the tensor itself.
Value = tuple[State, Tensor]


@dataclass(frozen=True, slots=True)
class LayerChange:
    """What recalibration did to one norm. The four figures are channel means.

    Attributes:
        name: Module path of the norm.
        cls: Its class name.
        updated: Whether its statistics were replaced.
        reason: Why not, None when they were.
        mean_before: Running mean as found.
        var_before: Running variance as found.
        mean_after: Running mean now.
        var_after: Running variance now.
    """

    name: str
    cls: str
    updated: bool
    reason: str | None
    mean_before: float
    var_before: float
    mean_after: float
    var_after: float


class Recalibration:
    """Handle of a recalibration: what changed, and the way back.

    Attributes:
        layers: One `LayerChange` per norm, in the order of the model's modules.
        batches: Number of batches used by this process.
        samples: Number of samples used by this process.
        converged: Whether the tolerance was reached; None when none was given.
        shape: Without data: the shape of the inputs that the statistics were predicted for.
        predicted: Whether the statistics were predicted, without data.
        effect: The loss before and after on batches that were held back; None where no loss is known.
        leverage: The sample or batch that dominates the statistics; None where none does.
    """

    def __init__(
        self,
        layers: tuple[LayerChange, ...],
        batches: int,
        samples: int,
        converged: bool | None,
        changes: Sequence[Value] = (),
        shape: Any = None,
        predicted: bool = False,
        effect: Effect | None = None,
        leverage: Leverage | None = None,
    ) -> None:
        self.predicted, self.effect, self.leverage = predicted, effect, leverage
        self.layers, self.batches, self.samples, self.converged = layers, batches, samples, converged
        self.shape = shape
        self._new = tuple(changes)
        self._old = tuple((state, state.tensor.detach().clone()) for state, _ in changes)

    @property
    def skipped(self) -> dict[str, str]:
        """The norms that kept their statistics, and why."""
        return {layer.name: layer.reason for layer in self.layers if layer.reason is not None}

    @property
    def places(self) -> tuple[State, ...]:
        """The places that it wrote to."""
        return tuple(state for state, _ in self._new)

    def undo(self) -> None:
        """Gives every norm the statistics back that it had before, bit for bit; an error does not stop it."""
        try:
            _write_all(self._old)
        except BaseException:
            _write_all(self._old)
            raise

    def apply(self) -> None:
        """Writes the new statistics."""
        _write_all(self._new)

    def __repr__(self) -> str:
        updated = sum(layer.updated for layer in self.layers)
        source = "without data" if self.predicted else f"from {self.batches} batches"
        if self.shape is not None:
            source += f", for inputs of shape {self.shape}"
        text = f"<Recalibration: {updated} of {len(self.layers)} norms updated {source}"
        if self.converged is not None:
            text += ", tolerance reached" if self.converged else ", tolerance not reached"
        if self.effect is not None:
            text += f", {self.effect}"
        if self.leverage is not None:
            text += f"; {self.leverage.words} dominates them"
        for name, reason in list(self.skipped.items())[:3]:
            text += f"; '{name}' left alone: {reason}"
        more = len(self.skipped) - 3
        return text + (f"; and {more} more" if more > 0 else "") + ">"


@protected
def _write_all(values: Sequence[Value]) -> None:
    """Writes values into buffers; signals wait until all of them are written."""
    holder = Holder()
    try:
        watch_signals(holder)
        for state, value in values:
            write(state.tensor, value)
    finally:
        release_signals(holder)
