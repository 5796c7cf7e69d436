"""What the samplers share: seeds, the count of epochs, exact resumption."""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sized
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

from varshift._arguments import count

_WORD = (1 << 64) - 1


def sized(name: str, source: Sized | int) -> Sized:
    """Returns the data source (a range for a number), or raises ValueError when it holds no samples.

    Example:
        >>> len(sized("data_source", 5))
        5
    """
    if isinstance(source, int):
        source = range(count(name, source, 0))
    try:
        samples = len(source)
    except TypeError:
        raise ValueError(
            f"{name} is a {type(source).__name__} without a length: a sampler needs a map-style data set, "
            "or the number of samples."
        ) from None
    if samples == 0:
        raise ValueError(
            f"{name} is an empty {type(source).__name__}: at least one sample is needed. "
            "Check the folder, the split or the filter that it was made of."
        )
    return source


def seed_of(seed: int | None, generator: torch.Generator | None) -> int:
    """The seed that was given, or one drawn from the generator (torch's default one without any)."""
    if seed is None:
        device = "cpu" if generator is None else generator.device
        return int(torch.empty((), dtype=torch.int64, device=device).random_(generator=generator))
    if generator is not None:
        raise ValueError(f"seed={seed!r} and generator are both given: pass one of them.")
    return whole_seed(seed)


def whole_seed(seed: int) -> int:
    """Returns the seed as an int, or raises ValueError when it is not a whole number.

    Example:
        >>> whole_seed(3)
        3
    """
    try:
        return operator.index(seed)
    except TypeError:
        raise ValueError(f"seed={seed!r} must be a whole number.") from None


def generator_of(seed: int, epoch: int) -> torch.Generator:
    """A generator for one epoch: unlike `seed + epoch`, neighbouring seeds share no epochs.

    Every process makes the same one from the same two numbers, so that ranks agree without talking.

    Example:
        >>> first, again = generator_of(0, 1), generator_of(0, 1)
        >>> first.initial_seed() == again.initial_seed() != generator_of(1, 0).initial_seed()
        True
    """
    return torch.Generator().manual_seed(_mixed((_mixed(seed & _WORD) + epoch) & _WORD))


def _mixed(word: int) -> int:
    """Steele, Lea and Flood (2014), SplitMix64: a bijection of 64-bit words that spreads every bit."""
    word = (word + 0x9E3779B97F4A7C15) & _WORD
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _WORD
    return word ^ (word >> 31)


class EpochPass(Iterator[int]):
    """One epoch's indices. The epoch begins, and is counted, when the first index is drawn.

    A DataLoader may ask its sampler for more iterators than it uses; only those that are used count.
    """

    def __init__(self, sampler: EpochSampler) -> None:
        self._sampler = sampler
        self._indices: list[int] | None = None
        self.epoch = -1
        self.position = 0
        self.finished = False

    def __next__(self) -> int:
        if self._indices is None:
            self.epoch, self.position, self._indices = self._sampler._begin(self)
        if self.position >= len(self._indices):
            self.finished = True
            raise StopIteration
        index = self._indices[self.position]
        self.position += 1
        return index


class EpochSampler(Sampler[int], ABC):
    """A sampler that counts its epochs by itself and can be resumed exactly.

    A subclass sets `seed`, `epoch` (the next one) and says what the indices of an epoch are.

    Example:
        >>> from varshift.data import RandomReshuffleSampler
        >>> sampler = RandomReshuffleSampler(4, seed=0)
        >>> isinstance(sampler, EpochSampler), sampler.epoch
        (True, 0)
    """

    seed: int
    epoch: int = 0
    _position: int = 0
    _running: EpochPass | None = None

    @abstractmethod
    def _indices(self, epoch: int) -> Tensor:
        """The indices that this process draws in an epoch."""

    @abstractmethod
    def _samples(self) -> int:
        """Number of samples of the data set."""

    def __iter__(self) -> Iterator[int]:
        """The indices of the next epoch."""
        return EpochPass(self)

    def _begin(self, started: EpochPass) -> tuple[int, int, list[int]]:
        epoch, position = self.epoch, self._position
        indices = self._indices(epoch).tolist()
        self.epoch, self._position, self._running = epoch + 1, 0, started
        return epoch, position, indices

    def set_epoch(self, epoch: int) -> None:
        """Sets the number of the next epoch; nobody has to call it.

        Epochs count themselves: without this call each new iterator takes the next number. Training loops
        that call it once an epoch, as they do for torch's DistributedSampler, get the same orders. Just
        after `load_state_dict`, a call with the number of the interrupted epoch keeps the place in it.

        Args:
            epoch: A number of at least 0.
        """
        epoch = count("epoch", epoch, 0)
        if epoch != self.epoch:
            self._position = 0
        self.epoch, self._running = epoch, None

    def state_dict(self, consumed: int | None = None) -> dict[str, Any]:
        """What is needed to go on exactly from here, in the middle of an epoch, too.

        Args:
            consumed: Number of indices of the current epoch that training has used. By default, those that
                were drawn; a DataLoader with workers draws ahead of training, so that with it, either pass
                `consumed=batches * batch_size` or save after the epoch's last batch.
        """
        epoch, position = self.epoch, self._position
        running = self._running
        if consumed is not None:
            position = count("consumed", consumed, 0)
            epoch = epoch if running is None else running.epoch
        elif running is not None and not running.finished:
            epoch, position = running.epoch, running.position
        return {"seed": self.seed, "epoch": epoch, "position": position, "samples": self._samples()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on where `state_dict` was taken: the next iterator yields the rest of that epoch.

        Raises:
            ValueError: If the state is of a sampler over another number of samples.
        """
        missing = {"seed", "epoch", "position", "samples"} - set(state_dict)
        if missing:
            raise ValueError(f"state_dict lacks {sorted(missing)}: pass what state_dict() of a sampler gave.")
        if state_dict["samples"] != self._samples():
            raise ValueError(
                f"state_dict is of {state_dict['samples']} samples and this sampler has {self._samples()}: "
                "the orders would differ. Resume with the same data set."
            )
        self.seed = whole_seed(state_dict["seed"])
        self.epoch = count("epoch", state_dict["epoch"], 0)
        self._position = count("position", state_dict["position"], 0)
        self._running = None

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles go on like the original: from the place that it has reached."""
        state = dict(self.__dict__)
        place = EpochSampler.state_dict(self)
        state.update(epoch=place["epoch"], _position=place["position"], _running=None)
        return state
