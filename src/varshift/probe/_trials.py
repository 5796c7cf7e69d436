"""Trials on a few samples in eval mode: alone, with other mates, with more padding, and once more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from varshift._errors import VarshiftError, strict
from varshift.model import Call, Forward, Shadow, short_message_of
from varshift.probe._company import change_company
from varshift.probe._eval_runs import EvalRuns
from varshift.probe._loss import Loss
from varshift.probe._padding import change_padding
from varshift.probe._repeats import repeat
from varshift.probe._trial_types import SAMPLES, Change, Incomparable, Repeats

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Trials:
    """What a few runs in eval mode showed that change one thing each.

    Attributes:
        samples: Number of samples.
        changes: What each change of a sample's company does to its outputs.
        repeats: What differs between runs of one batch.
        limits: What could not be tried, in plain sentences.
    """

    samples: int
    changes: tuple[Change, ...] = ()
    repeats: Repeats = field(default_factory=Repeats)
    limits: tuple[str, ...] = ()

    @property
    def apart(self) -> float | None:
        """Largest distance of a sample's output among its batch mates from that among others or alone."""
        differences = (one.difference for one in self.changes if one.kind in ("alone", "mates"))
        return max((one for one in differences if one is not None), default=None)

    def change(self, kind: Literal["alone", "mates", "padding"]) -> Change | None:
        """What one change does, None where it was not tried."""
        return next((change for change in self.changes if change.kind == kind), None)


def try_samples(
    shadow: Shadow,
    calls: Sequence[Call],
    *,
    forward: Forward | None = None,
    loss: Loss | None = None,
    seed: int = 0,
) -> Trials:
    """Runs a few samples in eval mode, each time with one thing changed; the shadow is reset.

    Args:
        shadow: Stands in for the network.
        calls: The batches that were drawn.
        forward: The user's function of model and batch, if any.
        loss: The user's function of outputs and targets, if any.
        seed: Seed of what is random.
    """
    shadow.run_eagerly(forward, loss)
    runs = EvalRuns(shadow, forward, loss, seed)
    limits: list[str] = []

    def tried(what: str, run: Callable[[], _Result], default: _Result) -> _Result:
        """What a trial brings; one that fails is a limit of the check."""
        try:
            return run()
        except VarshiftError as error:  # the model's own: it need not run on a few samples
            own = short_message_of(error.__cause__ or error)
            limits.append(f"{what} could not be compared: the model fails on a few samples ({own}).")
        except Incomparable as reason:
            limits.append(f"{what} could not be compared: {reason}.")
        except Exception as error:
            if strict():
                raise
            limits.append(f"{what} could not be compared: {short_message_of(error)}.")
        return default

    none: list[Change] = []
    try:
        repeats = tried("Whether two runs of one batch agree", lambda: repeat(runs, calls), Repeats())
        changes = none
        # Where two runs differ by themselves, a change of company cannot be told from chance.
        if not repeats.differs:
            mates = "Whether outputs depend on batch mates"
            changes = tried(mates, lambda: change_company(runs, calls[0]), none)
            padding = "Whether outputs depend on padding"
            changes = [*changes, *tried(padding, lambda: change_padding(runs, calls), none)]
    finally:
        shadow.fresh()
    return Trials(min(SAMPLES, calls[0].size), tuple(changes), repeats, tuple(limits))
