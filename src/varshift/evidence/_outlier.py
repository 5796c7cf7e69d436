"""Looks for a sample that dominates the stored statistics among the data that a check did not draw."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, IterableDataset

from varshift._errors import strict
from varshift.evidence._subject import Subject
from varshift.probe import Measurement, largest_sample, sample_sizes

_AT_ONCE = 64  # samples of a data set
_LEAST_SECONDS = 1.0


def with_outlier(measurement: Measurement, subject: Subject, seconds: float) -> Measurement:
    """The measurement, with the sample that its statistics hint at where the data hold one.

    Only inputs are read, nothing runs, and no longer than the measurement took. A loader is not gone through
    again: a list is read on, and of a DataLoader the data set is read.

    Args:
        measurement: What was measured; returned as it is unless it suspects an outlier.
        subject: The network and its loader.
        seconds: Time that the measurement took.
    """
    suspected = measurement.suspected
    if suspected is None:
        return measurement
    end = time.perf_counter() + max(seconds, _LEAST_SECONDS)
    places: list[tuple[int | None, int]] = []
    sizes: list[np.ndarray] = []
    try:
        for batch, first, part in _parts(subject):
            found = sample_sizes(subject.reader.read(part))
            if found is None or time.perf_counter() > end:
                break
            places += [(batch, first + row) for row in range(len(found))]
            sizes.append(found)
    except Exception:  # whatever a data set raises where it is read in another way than its loader does
        if strict():
            raise
        return measurement
    place = largest_sample(np.concatenate(sizes)) if sizes else None
    if place is None:
        return measurement
    batch, sample = places[place]
    return dataclasses.replace(
        measurement, leverage=dataclasses.replace(suspected, batch=batch, sample=sample), suspected=None
    )


def _parts(subject: Subject) -> Iterator[tuple[int | None, int, Any]]:
    """Batches that were not drawn, each with its number and the place of its first sample.

    Those read from a data set have no number, and the places of their samples are those in the data set.
    """
    loader = subject.loader
    if isinstance(loader, (list, tuple)):
        for number in range(len(loader)):
            yield number, 0, loader[number]
    elif isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset):
        dataset: Any = loader.dataset
        if loader.batch_size is None or not hasattr(dataset, "__len__"):
            return
        for first in range(0, len(dataset), _AT_ONCE):
            items = [dataset[place] for place in range(first, min(first + _AT_ONCE, len(dataset)))]
            yield None, first, loader.collate_fn(items)
