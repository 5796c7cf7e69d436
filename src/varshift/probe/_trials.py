"""Trials on a few samples in eval mode: alone, with other mates, with more padding, and once more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from varshift.model import Call, Forward, Shadow
from varshift.probe._company import try_company
from varshift.probe._eval_runs import EvalRuns
from varshift.probe._loss import Loss
from varshift.probe._padding import try_padding
from varshift.probe._repeats import try_repeats
from varshift.probe._trial_types import SAMPLES, Change, Repeats


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
    try:
        repeats = try_repeats(runs, calls, limits)
        changes: list[Change] = []
        # Where two runs differ by themselves, a change of company cannot be told from chance.
        if not repeats.differs:
            changes = [*try_company(runs, calls[0], limits), *try_padding(runs, calls, limits)]
    finally:
        shadow.fresh()
    return Trials(min(SAMPLES, calls[0].size), tuple(changes), repeats, tuple(limits))
