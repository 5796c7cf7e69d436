"""Does a loader make the same batches every epoch?"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader, IterableDataset

from varshift._errors import DataError
from varshift.data._epochs import EpochSampler
from varshift.data._fingerprint import BatchFingerprint


@dataclass(frozen=True)
class BatchReuse:
    """How far two epochs used the same batches.

    Attributes:
        overlap: The share of batches that both epochs had, in [0, 1]; 1 for fixed batches.
        chance: The overlap that a random partition would give; where it is near 1 (batches of one sample, a
            single batch) the overlap says nothing.
        batches: Number of batches of the first epoch.
        samples: Number of samples of the first epoch.
        by: What identified the samples: "ids" or "contents".

    Example:
        >>> from varshift.data import BatchReuse
        >>> BatchReuse(overlap=1.0, chance=0.0, batches=8, samples=64, by="ids").overlap
        1.0
    """

    overlap: float
    chance: float
    batches: int
    samples: int
    by: Literal["ids", "contents"]


def batch_reuse(
    loader: Iterable[Any],
    *,
    by: Literal["auto", "ids", "contents"] = "auto",
    key: Callable[[Any], Any] | None = None,
) -> BatchReuse:
    """Runs a loader for two epochs and reports how many batches they have in common.

    An overlap of 1 means single shuffle: stored order, a DistributedSampler without `set_epoch`, a sampler
    that seeds itself anew in each epoch, or batches that were made once and are shuffled as wholes.

    By ids, only the sampler of a DataLoader runs, twice, and no sample is loaded; augmentation cannot hide
    anything. By contents, all data of two epochs are loaded and compared; augmented samples differ then
    and hide a fixed partition, so that an overlap of 0 proves nothing. What the two epochs draw from torch's
    default generator on the CPU and from the loader's generators, and the epochs that the samplers of this
    package count, are put back afterwards; samplers of others that keep count are two epochs further.

    Args:
        loader: A DataLoader, or anything that yields the batches of a new epoch each time it is iterated.
        by: "ids", "contents", or "auto": by ids where the loader is a DataLoader that batches a map-style
            data set itself and there is no `key`.
        key: Takes what identifies the samples out of a batch; by default all of its contents.

    Raises:
        ValueError: If the loader yields no batches, yields none in the second epoch because it can only be
            iterated once, or has no ids although they are asked for.

    Example:
        >>> import torch
        >>> from torch.utils.data import DataLoader, DistributedSampler
        >>> from varshift.data import DistributedRandomReshuffleSampler, batch_reuse
        >>> data = torch.arange(64)
        >>> forgotten = DistributedSampler(data, num_replicas=2, rank=0)  # and nobody calls set_epoch
        >>> batch_reuse(DataLoader(data, batch_size=8, sampler=forgotten)).overlap
        1.0
        >>> cure = DistributedRandomReshuffleSampler(data, num_replicas=2, rank=0)
        >>> batch_reuse(DataLoader(data, batch_size=8, sampler=cure)).overlap
        0.0
    """
    if by not in ("auto", "ids", "contents"):
        raise ValueError(f"by={by!r} must be 'auto', 'ids' or 'contents'.")
    by_ids = _has_ids(loader)
    if by == "ids" and (not by_ids or key is not None):
        raise DataError(
            "by='ids' needs a DataLoader that batches a map-style data set itself, and no key: "
            "pass by='contents', with key= where the batches carry ids."
        )
    by_ids = by_ids and by != "contents" and key is None
    source: Any = loader.batch_sampler if by_ids and isinstance(loader, DataLoader) else loader
    with _kept(loader):
        epochs = [BatchFingerprint.of(source, key) for _ in range(2)]
    for name, epoch in zip(("first", "second"), epochs, strict=True):
        if not len(epoch):
            raise DataError(
                f"loader yielded no batches in the {name} epoch: pass a loader that is not empty and begins "
                "a new epoch each time it is iterated."
            )
    return BatchReuse(
        overlap=epochs[0].overlap(epochs[1]),
        chance=epochs[0].chance(),
        batches=len(epochs[0]),
        samples=epochs[0].samples,
        by="ids" if by_ids else "contents",
    )


def _has_ids(loader: Any) -> bool:
    return (
        isinstance(loader, DataLoader)
        and loader.batch_sampler is not None
        and not isinstance(loader.dataset, IterableDataset)
    )


@contextlib.contextmanager
def _kept(loader: Any) -> Iterator[None]:
    """Puts back the generators and the places of samplers."""
    parts = _parts(loader)
    generators = {id(g): g for part in parts if (g := getattr(part, "generator", None)) is not None}
    drawn = {key: generator.get_state() for key, generator in generators.items()}
    places = [(vars(part), dict(vars(part))) for part in parts if isinstance(part, EpochSampler)]
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        for key, generator in generators.items():
            generator.set_state(drawn[key])
        for attributes, place in places:
            attributes.update(place)


def _parts(loader: Any) -> list[Any]:
    """The loader, then its samplers from the outermost to the innermost, each once."""
    found: list[Any] = [loader]
    waiting = [getattr(loader, "batch_sampler", None), getattr(loader, "sampler", None)]
    while waiting:
        part = waiting.pop(0)
        if part is not None and not any(part is other for other in found):
            found.append(part)
            waiting.append(getattr(part, "sampler", None))
    return found
