"""The data as every variant of a seed sees them: the same samples, in the same order, augmented alike."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch.utils.data import DataLoader

from varshift.model import keep_process_generators, own_iteration, seed_all, seed_generators

# Apart from the numbers that the noise of the same seed and epoch gets.
_DATA, _EPOCH = 0x64617461, 1_000_003


def epoch_seed(seed: int, epoch: int) -> int:
    """The seed of what is drawn in one epoch."""
    return (seed * _EPOCH + epoch) % 2**31


class Stream:
    """Iterates over a loader with random numbers of its own, so that noise does not move them.

    Shuffling and augmentation draw from the process's generators, as dropout does. A network with less noise
    would draw fewer numbers and so see other data. Here the generators are exchanged while a batch is drawn:
    what is drawn depends on the seed and the number of the epoch alone. Generators that the loader, its
    sampler or its data set hold are seeded at the start of each epoch.

    Args:
        loader: The loader; it is not changed, but for the generators that it holds.
        seed: Seed of the data and of the noise.
        begin: Called with the number of each epoch, from 0, before it begins.
        tick: Called before each batch with the epochs that are done, as a fraction where the loader has a
            length.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        seed: int,
        begin: Callable[[int], object] = lambda _: None,
        tick: Callable[[float], object] = lambda _: None,
    ) -> None:
        self.loader, self.seed, self._begin, self._tick = loader, seed, begin, tick
        self.epoch = 0

    @property
    def length(self) -> int | None:
        """Batches of an epoch, None where the loader does not say."""
        try:
            return len(self.loader)  # type: ignore[arg-type]
        except TypeError:
            return None

    def __iter__(self) -> Iterator[Any]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        self._begin(epoch)
        drawn = epoch_seed(self.seed, epoch)
        outside = keep_process_generators()
        try:
            seed_all(drawn ^ _DATA)
            seed_generators(drawn ^ _DATA, self.loader)
            batches = iter(own_iteration(self.loader))
            inside = keep_process_generators()
        finally:
            _put_back(outside)
        seed_all(drawn)  # the noise of this epoch, whatever the one before has drawn
        for step in itertools.count():
            outside = keep_process_generators()
            try:
                _put_back(inside)
                batch = next(batches)
            except StopIteration:
                return
            finally:
                inside = keep_process_generators()
                _put_back(outside)
            self._tick(epoch + (step / self.length if self.length else 0.0))
            yield batch


def _put_back(restores: list[Callable[[], None]]) -> None:
    for restore in restores:
        restore()


def streamed(loader: Any, stream: Stream) -> Any:
    """The loader as a training function gets it: it iterates as the stream does, and is else what it was.

    A `DataLoader` stays one, of a class of its own, so that ``loader.dataset``, ``len(loader)`` and checks of
    its type work as ever.
    """
    if isinstance(loader, DataLoader):
        cls = type(type(loader).__name__, (_StreamedLoader, type(loader)), {})
        twin = object.__new__(cls)
        twin.__dict__.update(vars(loader), _iterator=None, _stream=stream)
        return twin
    return _Streamed(loader, stream)


class _StreamedLoader:
    """What comes before the class of a loader: its iteration is that of a stream."""

    def __iter__(self) -> Iterator[Any]:
        return iter(vars(self)["_stream"])


class _Streamed:
    """Any other iterable of batches."""

    def __init__(self, loader: Any, stream: Stream) -> None:
        self._loader, self._stream = loader, stream

    def __iter__(self) -> Iterator[Any]:
        return iter(self._stream)

    def __len__(self) -> int:
        return len(self._loader)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)
