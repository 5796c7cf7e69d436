"""What is known about how samples come together in batches: plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

# Batches are of one kind where the commonest value has this share of the way from what random batches have to
# all of a batch: .9 where random ones are far below, .6 where a batch spans two classes of a sorted data set.
PURE: Final = 0.6
PURE_BY_CHANCE: Final = 0.6


@dataclass(frozen=True, slots=True)
class Purity:
    """How much alike the samples of a batch are in a label or a group.

    Attributes:
        name: Name of the label or group, ``"label"`` for targets.
        share: Mean over batches of the share of a batch that the commonest value has.
        chance: What batches drawn at random would show.
        error: Standard deviation of that over random draws.
        values: Number of different values among the samples.
        in_data_set: Whether what is expected comes from samples at random places of the data set, since
            the batches that were drawn hold too few values.
    """

    name: str
    share: float
    chance: float
    error: float
    values: int
    in_data_set: bool = False

    @property
    def one_kind(self) -> bool:
        """Whether batches are of one kind each, where random batches would not be."""
        pure = self.share - self.chance >= PURE * (1 - self.chance)
        return pure and self.chance < PURE_BY_CHANCE


@dataclass(frozen=True, slots=True)
class Redrawn:
    """What redrawing the batches does to the loss, with batch statistics and without noise.

    Attributes:
        source: ``"batches"``: the samples of the drawn batches, distributed at random; ``"data set"``:
            samples at random places of the data set.
        batches: Number of redrawn batches.
        loss_drawn: Mean loss on the batches as they were drawn.
        loss_redrawn: Mean loss on the redrawn ones.
        stderr: Standard error of the difference, from the spread over redrawn batches or from the ranks of
            all batches, whichever tells more.
        alike: How many times the variance of batch means is what it is among redrawn batches, the median over
            norms and channels: 1 for batches drawn at random, large where batch mates are alike.
    """

    source: Literal["batches", "data set"]
    batches: int
    loss_drawn: float
    loss_redrawn: float
    stderr: float
    alike: float | None = None

    @property
    def delta(self) -> float:
        """How much the loss rises when batches are redrawn."""
        return self.loss_redrawn - self.loss_drawn


@dataclass(frozen=True, slots=True)
class BatchOrder:
    """How samples come together in batches.

    Attributes:
        shuffles: Whether the loader draws its samples in random order; None where that is not known.
        listed: Whether the batches came as a list: the same in every epoch, if it is the list of training.
        fixed: Share of batches that two epochs of the loader have in common, whatever their order; None where
            that is not known.
        reordered: Whether the batches came in another order in the second epoch; None likewise.
        labels: Purity of labels; None where targets are no class indices.
        groups: Purity of other fields of a batch that name a group, the purest first.
        redrawn: What redrawing does to the loss; None where nothing called for it or it could not be done.
    """

    shuffles: bool | None = None
    listed: bool = False
    fixed: float | None = None
    reordered: bool | None = None
    labels: Purity | None = None
    groups: tuple[Purity, ...] = ()
    redrawn: Redrawn | None = None
