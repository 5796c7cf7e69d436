"""What the trials in eval mode bring back, as plain data without tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from varshift.flow import Parting

SAMPLES = 8  # enough for batch mates to matter, and cheap


class Incomparable(Exception):  # noqa: N818 - an answer, not a fault
    """Results that cannot be compared; the message says why, in a few words."""


@dataclass(frozen=True, slots=True)
class Change:
    """What one change of its company does to a sample's output in eval mode.

    Attributes:
        kind: ``"alone"`` (without its batch mates), ``"mates"`` (with other ones), ``"padding"`` (padded to
            the length of its batch, against its own length).
        difference: Largest relative L2 distance of a sample's output; None where it could not be compared.
        limit: Distances up to here are rounding: kernels choose other blockings for other sizes.
        parting: The first operation at which the runs part, where the distance is beyond that.
        losses: Mean loss of the samples without and with the change, None where there is none.
        failed: Why the network does not run so, empty where it does.
        declared: Of padding: whether lengths or a mask are among the inputs.
    """

    kind: Literal["alone", "mates", "padding"]
    difference: float | None
    limit: float = 0.0
    parting: Parting | None = None
    losses: tuple[float, float] | None = None
    failed: str = ""
    declared: bool = False

    @property
    def matters(self) -> bool:
        """Whether the outputs differ beyond rounding."""
        return self.difference is not None and self.difference > self.limit


@dataclass(frozen=True, slots=True)
class Spread:
    """What randomness costs: the loss of single runs against that of their mean output.

    Attributes:
        loss: Loss of the mean output.
        cost: Mean loss of the runs less that, freed of the noise that is left in the mean.
        stderr: Its standard error over batches; None with a single batch.
        batches: Number of batches.
    """

    loss: float
    cost: float
    stderr: float | None
    batches: int


@dataclass(frozen=True, slots=True)
class Repeats:
    """What differs between runs of one batch in eval mode.

    Attributes:
        random: Relative L2 distance between runs from the same state with other random numbers.
        random_at: The first operation that gives something else.
        spread: What that costs in the loss, None without a loss or without randomness.
        drift: Relative L2 distance between a run and one after it that starts where it left the network, with
            the same random numbers, or after some other batches, whichever is larger.
        drift_at: The first operation that gives something else.
        drift_losses: Loss on the same samples before and after some other batches were evaluated.
        written: Names of parameters, buffers and attributes that a run in eval mode leaves changed.
    """

    random: float | None = None
    random_at: Parting | None = None
    spread: Spread | None = None
    drift: float | None = None
    drift_at: Parting | None = None
    drift_losses: tuple[float, float] | None = None
    written: tuple[str, ...] = ()

    @property
    def apart(self) -> float | None:
        """The larger of both distances, None where neither is known."""
        return max((one for one in (self.random, self.drift) if one is not None), default=None)

    @property
    def differs(self) -> bool:
        """Whether a run from the same state with other random numbers differs beyond rounding."""
        return self.random is not None and self.random > SAME


SAME = 1e-4  # relative distance of outputs that agree up to kernels that add in a random order
