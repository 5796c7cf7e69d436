"""What was seen of a training while it ran: plain data, as `varshift.watch` gathers it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class NormHistory:
    """What the steps of a training did to one norm.

    Attributes:
        name: The norm.
        momentum: Weight of a batch in its statistics; None where it is not constant.
        paths: Number of module paths that lead to it.
        recomputed: Whether code of a module around it refers to activation checkpointing.
        training: Number of readings at which it was in training mode.
        evaluation: Number of readings at which it was in evaluation mode.
        held: Whether it was in evaluation mode when the watch began, in a network in training mode.
        frozen: Whether its own parameters and the weights around it stay as they are.
        updates: Updates of its statistics for one step of the optimiser, the most frequent number; None where
            it does not count them, or none was seen.
        moved: Whether its statistics moved.
        broken_at: The step at which its statistics were first not finite.
        variance_ratio: Variance of recent batches over the running variance, of channel means.
        mean_offset: Root mean square over channels of the offset of recent batch means from the running
            mean, in standard deviations.
        trailing: How many stretches of batches in a row the statistics trailed the signal by more than a
            warning allows.
    """

    name: str
    momentum: float | None = None
    paths: int = 1
    recomputed: bool = False
    training: int = 0
    evaluation: int = 0
    held: bool = False
    frozen: bool = False
    updates: int | None = None
    moved: bool = False
    broken_at: int | None = None
    variance_ratio: float | None = None
    mean_offset: float | None = None
    trailing: int = 0


@dataclass(frozen=True, slots=True)
class RateChange:
    """A rate of dropout that changed during training.

    Attributes:
        module: Path of the module.
        step: The step after which it was seen.
        before: The rate before.
        after: The rate after.
    """

    module: str
    step: int
    before: float
    after: float


@dataclass(frozen=True, slots=True)
class HistoryRow:
    """One reading.

    Attributes:
        step: Number of the step.
        training: Number of norms in training mode.
        noise: Number of noise modules in training mode.
        updates: Updates of the statistics for one step of the optimiser, of most norms.
        worst: The norm whose statistics trail most; empty before that is known.
        variance_ratio: Variance of recent batches over the running variance there.
    """

    step: int
    training: int
    noise: int
    updates: int | None = None
    worst: str = ""
    variance_ratio: float | None = None


@dataclass(frozen=True, slots=True)
class RankNorm:
    """What one norm saw on the ranks of a data-parallel training, in some of its channels.

    Attributes:
        name: The norm.
        variance_ratio: Largest over smallest variance of the batches of a rank, each the mean over channels
            of the variance over that of all ranks.
        mean_offset: Largest root mean square over channels of the offset of a rank's batch means from those
            of all ranks, in standard deviations of the batches.
        mean_consistency: How far the means of that rank are from those of all ranks in standard errors over
            steps.
        variance_consistency: The same for the variances.
    """

    name: str
    variance_ratio: float
    mean_offset: float
    mean_consistency: float
    variance_consistency: float


@dataclass(frozen=True, slots=True)
class RankFacts:
    """What the ranks of a data-parallel training see.

    Attributes:
        ranks: Number of ranks that were heard.
        readings: Number of steps that they were compared at.
        synchronised: Whether all norms compute their statistics over all ranks.
        broadcast: Whether all ranks begin a step with the statistics of the first one.
        norms: The norms, by name.
    """

    ranks: int
    readings: int
    synchronised: bool
    broadcast: bool
    norms: Mapping[str, RankNorm] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class History:
    """What was seen of a training while it ran.

    Attributes:
        steps: How often `step()` was called.
        every: Between how many steps the statistics were read.
        readings: How often they were read.
        moves: How many of the steps found other weights than the step before.
        calls: Calls of `step()` for one move of the weights, the most frequent number; None before it is
            known.
        rewritten: Whether weights are written more often in a step than the optimiser writes them: a look at
            perturbed weights. None where that is not known.
        backwards: The most backward passes that a gradient can be the sum of; None where no gradient was
            there to be read.
        asleep: How many of the latest moves of the weights in a row found the network, all norms and all
            noise in evaluation mode.
        asleep_since: The step at which the last such stretch began.
        woken_at: The step at which norms that were held in evaluation mode were first seen in training mode.
        quiet_noise: Noise modules next to weights that train, in evaluation mode at all of the latest moves.
        awake_noise: Number of noise modules next to weights that train that were seen in training mode.
        skipped: Steps since statistics were first not finite that found the weights as they were.
        norms: The norms, by name.
        rates: Rates of dropout that changed.
        ranks: What the ranks of a data-parallel training see; None without such ranks.
        rows: Some of the readings, spread over the training.
    """

    steps: int = 0
    every: int = 1
    readings: int = 0
    moves: int = 0
    calls: int | None = None
    rewritten: bool | None = None
    backwards: int | None = None
    asleep: int = 0
    asleep_since: int = 0
    woken_at: int | None = None
    quiet_noise: tuple[str, ...] = ()
    awake_noise: int = 0
    skipped: int = 0
    norms: Mapping[str, NormHistory] = field(default_factory=dict)
    rates: tuple[RateChange, ...] = ()
    ranks: RankFacts | None = None
    rows: tuple[HistoryRow, ...] = ()
