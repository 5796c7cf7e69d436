"""Batches of a set that lies on the device as a whole, augmented by the epoch and resumable exactly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from varshift import DataError
from varshift._arguments import count
from varshift.data import (
    DistributedRandomReshuffleSampler,
    DistributedSingleShuffleSampler,
    EpochSampler,
    sized,
    whole_seed,
)
from varshift_lab.data._augment import Augmentation
from varshift_lab.data._images import Images

Order = Literal["reshuffle", "single", "stored"]

# Bytes of batches that are made ahead: few on a processor, where memory is near; a GPU wants few launches.
_AHEAD = {"cpu": 8 << 20, "other": 2 << 30}


class StoredOrderSampler(EpochSampler):
    """All samples in their stored order, in every epoch; for evaluation.

    Args:
        data_source: The data set, or the number of its samples.
    """

    def __init__(self, data_source: Any) -> None:
        self.data_source = sized("data_source", data_source)
        self.seed = 0

    def _samples(self) -> int:
        return len(self.data_source)

    def _indices(self, epoch: int) -> Tensor:
        return torch.arange(self._samples())

    def __len__(self) -> int:
        return self._samples()


class _Samples(Dataset[Any]):
    """The images one by one, for those who look into a loader's data set."""

    def __init__(self, images: Images) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        one = self.images.take([index])
        return one.normalised()[0], one.labels[0]


@dataclass(slots=True)
class _Place:
    """Where the latest epoch is: samples that were handed out, and whether those were all."""

    consumed: int
    finished: bool = False


class EpochLoader(DataLoader[Any]):
    """Batches ``(inputs, labels)`` of images that are on the training device already.

    There are no workers and no transfers: once an epoch the order and the random numbers of the augmentation
    go to the device; nothing there is waited for. It is a `DataLoader`, so that whoever reads batch size,
    order or `drop_last` from loaders, as `varshift.check` does, finds them.

    Each new iterator is a new epoch. Its order and its augmentation follow from the seed and its number, so
    that a run can be resumed exactly, in the middle of an epoch, too: `state_dict` knows which batches were
    handed out last. A check or recalibration on the way takes epochs of its own from the loader it is given;
    give it another one over the same images, which takes no memory.

    In a process group each process gets its share of the shuffled orders and all of the stored one. The
    augmentation of a sample depends neither on the number of processes nor on its place in the epoch.

    Args:
        images: The set.
        batch_size: Samples per batch (of this process), at least 1.
        order: ``"reshuffle"`` for a fresh permutation in each epoch, ``"single"`` for the same one in every
            epoch, ``"stored"`` for none, or a sampler of `varshift.data`.
        augmentation: What is done to the images; by default they are normalised only.
        drop_last: Leave out a last batch that is not full.
        seed: Seed of order and augmentation.
        dtype: Type of the inputs.
        channels_last: Lay inputs out with the channels innermost.
        device: Where to keep the images; by default where they are.
        ids: Yield ``((inputs, labels), ids)``, with the places of the samples in the set, as `IndexedDataset`
            does.

    Raises:
        ValueError: If an argument is out of range, or there is no batch in an epoch.

    Example:
        >>> from varshift_lab.data import Augmentation, EpochLoader, digit_images
        >>> loader = EpochLoader(digit_images(), 64, augmentation=Augmentation(pad=1), drop_last=True)
        >>> inputs, labels = next(iter(loader))
        >>> inputs.shape, len(loader)
        (torch.Size([64, 1, 8, 8]), 21)
    """

    def __init__(
        self,
        images: Images,
        batch_size: int,
        *,
        order: Order | EpochSampler = "reshuffle",
        augmentation: Augmentation | None = None,
        drop_last: bool = False,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
        device: torch.device | str | None = None,
        ids: bool = False,
    ) -> None:
        self.images = images if device is None else images.to(device)
        self.augmentation = Augmentation() if augmentation is None else augmentation
        self.seed = whole_seed(seed)
        if not dtype.is_floating_point:
            raise ValueError(f"dtype={dtype} must be a floating-point type.")
        self.dtype, self.channels_last, self.ids = dtype, channels_last, ids
        self._place: _Place | None = None
        sampler: Any = _sampler(order, self.images, self.seed)
        super().__init__(
            _Samples(self.images),
            batch_size=count("batch_size", batch_size, 1),
            sampler=sampler,
            drop_last=bool(drop_last),
        )
        if len(self) == 0:
            raise ValueError(
                f"batch_size={batch_size} leaves no full batch of {len(sampler)} samples: use a smaller "
                "one or drop_last=False."
            )
        height, width = self.images.pixels.shape[2:]
        self.augmentation.draw(0, height, width, torch.Generator())  # complains about the size

    @property
    def _order(self) -> EpochSampler:
        return self.sampler  # type: ignore[return-value]

    def __iter__(self) -> Any:
        """The batches of the next epoch, or of the rest of one that is resumed."""
        return self._epoch()

    def _epoch(self) -> Iterator[Any]:
        size, device = self._size, self.images.pixels.device
        begun: Any = iter(self._order)
        order = torch.tensor(list(begun), dtype=torch.int64)
        if len(order) and not 0 <= int(order.min()) <= int(order.max()) < len(self.images):
            raise DataError(
                f"order yields index {int(order.max())} and there are {len(self.images)} images: the sampler "
                "is of another set."
            )
        self._place = place = _Place(begun.position - len(order))
        # A resumed epoch may begin at its end, which is the end of it.
        samples = len(order) - len(order) % size if self.drop_last else len(order)
        place.finished = samples == 0
        draws = self.augmentation.draws(self.images, self.seed, begun.epoch).to(device)
        index = order.to(device)
        labels = self.images.labels[index]
        each = self.images.pixels[0].numel() * torch.empty((), dtype=self.dtype).element_size()
        ahead = _AHEAD["cpu" if device.type == "cpu" else "other"] // (each * size)
        ahead = max(1, ahead) * size
        for start in range(0, samples, ahead):
            inputs = self.augmentation.apply(
                self.images,
                index[start : min(start + ahead, samples)],
                draws,
                dtype=self.dtype,
                channels_last=self.channels_last,
            )
            for first in range(0, len(inputs), size):
                here = slice(start + first, min(start + first + size, samples))
                place.consumed += here.stop - here.start
                place.finished = here.stop == samples
                batch = inputs[first : first + size], labels[here]
                yield (batch, index[here]) if self.ids else batch

    @property
    def _size(self) -> int:
        return self.batch_size or 1

    def set_epoch(self, epoch: int) -> None:
        """Sets the number of the next epoch; nobody has to call it."""
        self._order.set_epoch(epoch)
        self._place = None

    def state_dict(self) -> dict[str, Any]:
        """What is needed to go on exactly after the batch that was handed out last."""
        place = self._place
        unfinished = place is not None and not place.finished
        return {
            "seed": self.seed,
            "order": self._order.state_dict(place.consumed if unfinished and place else None),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on where `state_dict` was taken: the next iterator yields the rest of that epoch.

        Raises:
            ValueError: If the state is of a loader over another number of samples.
        """
        missing = {"seed", "order"} - set(state_dict)
        if missing:
            raise ValueError(f"state_dict lacks {sorted(missing)}: pass what state_dict() of a loader gave.")
        self._order.load_state_dict(state_dict["order"])
        self.seed = whole_seed(state_dict["seed"])
        self._place = None

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles go on like the original: from the batch that was handed out last."""
        return {**self.__dict__, "_resume": self.state_dict()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({name: value for name, value in state.items() if name != "_resume"})
        self.load_state_dict(state["_resume"])


def _sampler(order: Any, images: Images, seed: int) -> EpochSampler:
    if isinstance(order, EpochSampler):
        return order
    kinds: dict[str, Any] = {
        "reshuffle": lambda: DistributedRandomReshuffleSampler(len(images), seed=seed),
        "single": lambda: DistributedSingleShuffleSampler(len(images), seed=seed),
        "stored": lambda: StoredOrderSampler(len(images)),
    }
    if not isinstance(order, str) or order not in kinds:
        raise ValueError(
            f"order={order!r} must be 'reshuffle', 'single', 'stored' or a sampler of varshift.data."
        )
    return kinds[order]()
