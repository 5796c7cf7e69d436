"""The cures of a data loader: it is built again, with one setting changed."""

from __future__ import annotations

import copy
from collections.abc import Sequence, Sized
from dataclasses import dataclass
from typing import Any, cast

from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from varshift._errors import VarshiftError
from varshift._sites import SiteId
from varshift.data import (
    DistributedRandomReshuffleSampler,
    DistributedSingleShuffleSampler,
    RandomReshuffleSampler,
    SingleShuffleSampler,
)
from varshift.fixes._edit import Change, Edit, edit
from varshift.fixes._patient import Patient
from varshift.fixes._remedy import NoOptions, Remedy, remedy
from varshift.fixes._surgery import Refused, Surgery
from varshift.rules import Finding

_LOADER = SiteId("", "loader")


@edit("drop-last")
@dataclass(frozen=True, slots=True)
class DropLast(Edit):
    """Has the loader leave out the incomplete last batch of an epoch."""

    acts_on = "loader"

    def apply(self, surgery: Surgery) -> tuple[Change, ...]:
        """Puts a loader with ``drop_last=True`` in the place of the one at hand."""
        loader = dropping_last(surgery.data)
        surgery.set(surgery, "data", loader)
        return (Change(_LOADER, "drop_last=False", "drop_last=True", "data"),)


@edit("reshuffle")
@dataclass(frozen=True, slots=True)
class Reshuffle(Edit):
    """Has the loader draw the samples of every batch at random in every epoch."""

    acts_on = "loader"

    def apply(self, surgery: Surgery) -> tuple[Change, ...]:
        """Puts a loader with a shuffling sampler in the place of the one at hand."""
        before = type(getattr(surgery.data, "sampler", None)).__name__
        loader = reshuffling(surgery.data)
        surgery.set(surgery, "data", loader)
        return (Change(_LOADER, before, type(loader.sampler).__name__, "data"),)


def dropping_last(loader: Any) -> DataLoader[Any]:
    """A loader like another one that leaves the incomplete last batch out; that one stays as it is.

    Raises:
        Refused: If there is no such loader, with the line to write by hand.
    """
    _require_loader(loader, "drop_last=True")
    sampler = loader.batch_sampler
    if loader.batch_size is None and sampler is None:
        raise Refused("the data set makes the batches: let it leave out the last one where it is incomplete.")
    if getattr(sampler, "drop_last", loader.drop_last):
        raise Refused("the loader leaves the last batch out already.")
    if type(sampler) is BatchSampler:
        size = sampler.batch_size
        changed = BatchSampler(sampler.sampler, size, drop_last=True)
    elif hasattr(sampler, "drop_last"):
        size = getattr(sampler, "batch_size", loader.batch_size)
        changed = copy.copy(sampler)
        changed.drop_last = True
    else:
        raise Refused(
            f"the loader draws its batches from a {type(sampler).__name__}: let that leave the last one out."
        )
    samples = _count(loader)
    if isinstance(size, int) and samples is not None and samples < size:
        raise Refused(f"a batch holds {size} samples, and there are {samples}: nothing would be left.")
    return _rebuilt(loader, batch_sampler=changed, drop_last=loader.batch_size is not None)


def reshuffling(loader: Any) -> DataLoader[Any]:
    """A loader like another one that shuffles again in every epoch; that one stays as it is.

    Raises:
        Refused: If there is no such loader, with the line to write by hand.
    """
    _require_loader(loader, "shuffle=True")
    if isinstance(loader.dataset, IterableDataset):
        raise Refused("the data set decides the order of its samples: let its __iter__ shuffle them.")
    batches: Any = loader.batch_sampler
    sampler = loader.sampler
    if loader.batch_size is None and batches is not None:
        if type(batches) is not BatchSampler:
            raise Refused(
                f"the loader draws its batches from a {type(batches).__name__}: let that shuffle the samples "
                "in every epoch."
            )
        sampler = batches.sampler
    shuffled = _shuffled(sampler, loader)
    if batches is None:
        return _rebuilt(loader, sampler=shuffled)
    changed = BatchSampler(shuffled, batches.batch_size, batches.drop_last)
    if loader.batch_size is None:
        return _rebuilt(loader, batch_sampler=changed)
    return _rebuilt(loader, sampler=shuffled, batch_sampler=changed)


def _shuffled(sampler: Any, loader: DataLoader[Any]) -> Any:
    """A sampler of the same samples, in another order each time."""
    if isinstance(sampler, (RandomSampler, RandomReshuffleSampler, DistributedRandomReshuffleSampler)):
        raise Refused("the loader shuffles in every epoch already.")
    if isinstance(sampler, (DistributedSampler, DistributedSingleShuffleSampler)):
        return DistributedRandomReshuffleSampler(
            cast(Sized, sampler.dataset),
            sampler.num_replicas,
            sampler.rank,
            seed=sampler.seed,
            drop_last=sampler.drop_last,
        )
    if isinstance(sampler, SingleShuffleSampler):
        return RandomReshuffleSampler(sampler.data_source, seed=sampler.seed)
    if type(sampler) is SequentialSampler:
        return RandomSampler(sampler.data_source, generator=loader.generator)
    raise Refused(
        f"the order comes from a {type(sampler).__name__}, which decides what is drawn: pass "
        "sampler=varshift.data.RandomReshuffleSampler(dataset) where every sample is to be drawn once."
    )


def _require_loader(loader: Any, line: str) -> None:
    if loader is None:
        raise Refused("this is a cure of the data: pass loader=.")
    if not isinstance(loader, DataLoader):
        raise Refused(
            f"the loader is a {type(loader).__name__}, no torch.utils.data.DataLoader: where it is built, "
            f"write DataLoader(dataset, ..., {line})."
        )


def _count(loader: DataLoader[Any]) -> int | None:
    """Number of samples of an epoch; None where it is not known."""
    try:
        sampler = loader.sampler if loader.batch_size is not None else loader.batch_sampler.sampler  # type: ignore[union-attr]
        return None if isinstance(loader.dataset, IterableDataset) else len(sampler)  # type: ignore[arg-type]
    except (TypeError, AttributeError):
        return None


def _rebuilt(loader: DataLoader[Any], **changes: Any) -> DataLoader[Any]:
    """A shallow copy: the same data set, workers and functions, of whatever class the loader is.

    A loader refuses such settings once it is built, because its iterators have read them: the copy has none.
    """
    twin = copy.copy(loader)
    vars(twin).update(changes)
    if "_iterator" in vars(twin):
        vars(twin)["_iterator"] = None
    return twin


@dataclass(frozen=True, slots=True)
class DropLastOptions:
    """Options of the cure.

    Attributes:
        drop_last: True; the name of the setting.

    Raises:
        VarshiftError: If it is anything else.
    """

    drop_last: bool = True

    def __post_init__(self) -> None:
        if self.drop_last is not True:
            raise VarshiftError(f"drop_last={self.drop_last!r} must be True: leave the cure out otherwise.")


@remedy
class DropLastRemedy(Remedy):
    """Leaves out the incomplete last batch of an epoch."""

    code = "drop-last"
    answers = ("VS301",)
    safety = "safe"
    restates = True  # the running averages hold that batch

    options = DropLastOptions

    def plan(
        self, patient: Patient, sites: Sequence[SiteId], options: DropLastOptions, finding: Finding | None
    ) -> Sequence[Edit]:
        """One edit of the loader."""
        dropping_last(patient.loader)
        return (DropLast(),)


@remedy
class ReshuffleRemedy(Remedy):
    """Draws the samples of every batch at random in every epoch."""

    code = "reshuffle"
    answers = ("VS302", "VS303", "VS304")
    safety = "unsafe"
    restates = True

    def plan(
        self, patient: Patient, sites: Sequence[SiteId], options: NoOptions, finding: Finding | None
    ) -> Sequence[Edit]:
        """One edit of the loader."""
        reshuffling(patient.loader)
        return (Reshuffle(),)
