"""Facts about the loader: what it says about its batches, and the sizes of those that were drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch.utils.data import DataLoader, DistributedSampler, default_collate

from varshift.evidence._provider import Provider
from varshift.evidence._subject import Subject
from varshift.evidence._types import Evidence, Kind, LoaderFacts
from varshift.model import batch_size


class LoaderProvider(Provider):
    """Reads a loader: a plain DataLoader knows its batches, those of any other loader are drawn."""

    kind = "loader"
    reads = ("loader",)
    makes = "batch size, number of samples, size of the last batch"
    inputs = "a loader"
    cost = "no pass; no batch is drawn from a plain DataLoader"

    def batches(self, subject: Subject) -> int:
        """None where the loader says by itself how large all of its batches are."""
        loader = subject.loader
        facts = loader_facts(loader)
        plain = isinstance(loader, DataLoader) and loader.collate_fn is default_collate
        return 0 if plain and facts.batch_size and facts.last_batch else subject.max_batches

    def make(
        self, subject: Subject, evidence: Evidence, wanted: frozenset[Kind], limits: list[str]
    ) -> Mapping[str, Any]:
        """Reads the loader."""
        return {
            "loader": loader_facts(
                subject.loader,
                tuple(call.size for call in subject.calls),
                lambda batch: subject.reader.read(batch).size,
            )
        }


def loader_facts(
    loader: Any, sizes: tuple[int, ...] = (), count: Callable[[Any], int] = batch_size
) -> LoaderFacts:
    """Reads what a loader says about its batches.

    Args:
        loader: A DataLoader, a sequence of batches, or anything else (then only `sizes` is known).
        sizes: Sizes of the batches that were drawn.
        count: Counts the samples of a batch.
    """
    if isinstance(loader, DataLoader):
        facts = _dataloader_facts(loader, sizes)
        if facts.batch_size == 1 and sizes and min(sizes) > 1:
            # Its items are whole batches or graphs: what it counts are not the samples.
            return LoaderFacts(None, max(sizes), facts.drop_last, None, sizes)
        return facts
    if isinstance(loader, (list, tuple)) and loader:
        all_sizes = [count(batch) for batch in loader]
        return LoaderFacts(sum(all_sizes), max(all_sizes), None, all_sizes[-1], sizes)
    return LoaderFacts(None, max(sizes, default=0) or None, None, None, sizes)


def _dataloader_facts(loader: DataLoader[Any], sizes: tuple[int, ...]) -> LoaderFacts:
    sampler = loader.batch_sampler if loader.batch_sampler is not None else loader
    size = getattr(sampler, "batch_size", None)
    drop_last = getattr(sampler, "drop_last", None)
    samples = _length(getattr(sampler, "sampler", loader.sampler))
    if isinstance(loader.sampler, DistributedSampler):
        samples = loader.sampler.num_samples
    last = None
    if samples and isinstance(size, int) and size > 0 and loader.batch_sampler is not None:
        rest = samples % size
        last = size if rest == 0 or (drop_last and samples > size) else rest
    return LoaderFacts(
        samples,
        size if isinstance(size, int) else None,
        drop_last if isinstance(drop_last, bool) else None,
        last,
        sizes,
    )


def _length(sized: Any) -> int | None:
    try:
        return len(sized)
    except (TypeError, NotImplementedError):
        return None
