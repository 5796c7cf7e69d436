"""How samples come together in batches, and what it does to the loss to draw them at random instead."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from varshift.evidence._composition import epochs, is_map_style, shuffles
from varshift.evidence._order_facts import BatchOrder, Purity, Redrawn
from varshift.evidence._provider import Provider
from varshift.evidence._purity import classes, groups, purity_of
from varshift.evidence._subject import GATE_ERRORS, GATE_SHARE, Subject, evenly
from varshift.evidence._types import Evidence, Kind
from varshift.model import Call, move, partition, regroup

_FIXED = 0.9  # share of batches that two epochs have in common from which their composition is fixed
_ALL = 0.9  # share of one label from which the drawn batches may be those of one class of the data set
REDRAWN = 16  # batches; a few hard ones carry much of a small loss
_FROM_DATA_SET = 256  # samples that are loaded at random places


class OrderProvider(Provider):
    """Looks at the composition of batches, and redraws them where something hints at it."""

    kind = "order"
    unknown = "Whether batch mates matter"
    reads = ("loader",)
    makes = "purity of labels and groups in a batch, batches of two epochs, the loss on redrawn batches"
    inputs = "a loader"
    cost = (
        "no pass; up to 16 batches where batches are of one kind or their statistics carry a part of the gap"
    )
    needs = ("measurement",)

    def batches(self, subject: Subject) -> int:
        """As many as it may have."""
        return subject.max_batches

    def make(
        self, subject: Subject, evidence: Evidence, wanted: frozenset[Kind], limits: list[str]
    ) -> Mapping[str, Any]:
        """Looks."""
        return {"order": _Order(subject, evidence).facts()}


class _Order:
    def __init__(self, subject: Subject, evidence: Evidence) -> None:
        self._subject, self._evidence = subject, evidence
        self._calls = list(subject.calls)
        self._elsewhere: list[Call] | None = None

    def facts(self) -> BatchOrder:
        loader = self._subject.loader
        random_order = shuffles(loader)
        fixed, reordered = epochs(loader)
        labels = self._labels(random_order)
        grouped = groups(self._calls)
        redrawn = None
        suspicious = any(one.one_kind for one in (labels, *grouped) if one is not None)
        same = fixed is not None and fixed > _FIXED
        if suspicious or self._gap_is_open(same) or (same and reordered):
            redrawn = self._redrawn(random_order)
        listed = isinstance(loader, (list, tuple))
        return BatchOrder(random_order, listed, fixed, reordered, labels, grouped, redrawn)

    # -- labels ---------------------------------------------------------------------------------------------

    def _labels(self, random_order: bool | None) -> Purity | None:
        """Purity of the labels; drawn in order, the batches may all be of the first class of the data set."""
        batches = [column for call in self._calls if (column := classes(call)) is not None]
        labels = purity_of("label", batches) if len(batches) == len(self._calls) else None
        if labels is None or labels.share < _ALL or labels.one_kind or random_order is not False:
            return labels
        elsewhere = [column for call in self._at_random() if (column := classes(call)) is not None]
        values = [value for column in elsewhere for value in column]
        return (purity_of("label", batches, values) if values else None) or labels

    # -- redrawing ---------------------------------------------------------------------------------------

    def _gap_is_open(self, same: bool) -> bool:
        """Whether the loss is lower with batch statistics than with pooled ones: only then do mates help.

        Args:
            same: Whether every epoch has the same batches. Learned together with their statistics, they show
                it in a few batches with a large loss: the step need not be beyond its error.
        """
        gap = self._evidence.measurement.gap if self._evidence.measurement else None
        if gap is None or gap.metric != "loss":
            return False
        return gap.rises("small-batch", GATE_SHARE, 0.0 if same else GATE_ERRORS)

    def _redrawn(self, random_order: bool | None) -> Redrawn | None:
        before = self._drawn()
        if before is None or not any(call.size > 1 for call in self._calls):
            return None
        chosen = _spread(self._calls, REDRAWN)
        calls, drawn = [self._calls[i] for i in chosen], [before[i] for i in chosen]
        from_data_set = random_order is False and is_map_style(self._subject.loader)
        others = self._at_random() if from_data_set else []
        if not others:
            from_data_set, others = False, self._again(calls)
        if len(others) < 2:
            return None
        redrawn = self._subject.runner().run(others, "batch", series=True)
        after = [loss for loss in redrawn.losses if loss is not None and math.isfinite(loss)]
        if len(after) < len(others):
            return None
        # Redrawn batches of the same samples: were the drawn ones like them, their mean would scatter as
        # that of another redraw does. Other samples bring the scatter of the drawn ones on top.
        errors = [_error(after), _error(drawn if from_data_set else after)]
        one, other = _mean(drawn, calls), _mean(after, others)
        # A few hard batches make the mean scatter; the ranks of all batches may tell more.
        error = min(math.hypot(*errors), abs(other - one) / max(_rank_errors(drawn, after), 1e-9))
        source = "data set" if from_data_set else "batches"
        return Redrawn(source, len(others), one, other, error, self._alike(redrawn.effective))

    def _drawn(self) -> list[float] | None:
        """The loss of every drawn batch with batch statistics, without noise; None where one is not known."""
        measurement = self._evidence.measurement
        losses = measurement.gap.batches.get("clean_eval", ()) if measurement and measurement.gap else ()
        known = [loss for loss in losses if loss is not None]
        return known if len(known) == len(self._calls) else None

    def _alike(self, effective: Mapping[str, float]) -> float | None:
        """Variance of batch means over that of redrawn batches, the median over norms."""
        ratios = [
            effective[name] / layer.effective_batch
            for name, layer in self._evidence.measured.items()
            if layer.effective_batch and name in effective
        ]
        return statistics.median(ratios) if ratios else None

    def _again(self, calls: Sequence[Call]) -> list[Call]:
        """The samples of some batches, distributed at random over batches of the same sizes."""
        generator = torch.Generator().manual_seed(self._subject.seed)
        parts = partition([call.size for call in calls], generator)
        made = [regroup(calls, part) for part in parts]
        return [] if any(call is None for call in made) else [call for call in made if call is not None]

    def _at_random(self) -> list[Call]:
        """Batches of samples at random places of the data set, put together as the loader does it."""
        if self._elsewhere is None:
            self._elsewhere = list(self._drawn_at_random())
        return self._elsewhere

    def _drawn_at_random(self) -> Iterator[Call]:
        loader: Any = self._subject.loader
        if not is_map_style(loader):
            return
        size = max(2, statistics.mode([call.size for call in self._calls]))
        count = min(REDRAWN, max(4, _FROM_DATA_SET // size))
        samples = len(loader.dataset)
        generator = torch.Generator().manual_seed(self._subject.seed)
        order = torch.randperm(samples, generator=generator, device="cpu")[: size * count].tolist()
        for start in range(0, len(order) - size + 1, size):
            items = [loader.dataset[index] for index in order[start : start + size]]
            batch = move(loader.collate_fn(items), self._subject.device)
            yield self._subject.reader.read(batch)


def _spread(calls: Sequence[Call], count: int) -> list[int]:
    """Numbers of some of the batches, spread evenly over all of them; whole ones only, as a rule."""
    largest = max((call.size for call in calls), default=0)
    whole = [number for number, call in enumerate(calls) if call.size == largest]
    return evenly(whole if len(whole) >= 2 else range(len(calls)), count)


def _mean(losses: Sequence[float], calls: Sequence[Call]) -> float:
    sizes = [call.size for call in calls]
    return sum(loss * size for loss, size in zip(losses, sizes, strict=True)) / sum(sizes)


def _error(losses: Sequence[float]) -> float:
    return statistics.stdev(losses) / math.sqrt(len(losses)) if len(losses) > 1 else math.inf


def _rank_errors(one: Sequence[float], other: Sequence[float]) -> float:
    """By how many standard errors the values of one set rank above or below those of the other.

    The test of Mann and Whitney (1947): the share of pairs in which the second is larger has the mean 1/2 and
    the variance ``(m + n + 1) / (12 m n)`` where both sets are of one distribution.
    """
    pairs = [(b > a) + 0.5 * (b == a) for a in one for b in other]
    return abs(statistics.fmean(pairs) - 0.5) / math.sqrt((len(one) + len(other) + 1) / (12 * len(pairs)))
