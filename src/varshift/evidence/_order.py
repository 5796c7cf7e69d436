"""How samples come together in batches, and what it does to the loss to draw them at random instead."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from varshift._errors import VarshiftError, strict
from varshift.evidence._composition import epochs, is_map_style, shuffles
from varshift.evidence._order_facts import PURE, BatchOrder, Purity, Redrawn
from varshift.evidence._provider import Provider
from varshift.evidence._purity import classes, groups, purity_of
from varshift.evidence._subject import Subject
from varshift.evidence._types import Evidence, Kind
from varshift.model import Call, move, partition, regroup

_FIXED = 0.9  # share of batches that two epochs have in common from which their composition is fixed
REDRAWN = 8  # batches; their spread is known to a quarter then
_FROM_DATA_SET = 256  # samples that are loaded at random places
_GATE_SHARE, _GATE_ERRORS = 0.05, 2.0  # of the small-batch step; below these redrawing has nothing to explain


class OrderProvider(Provider):
    """Looks at the composition of batches, and redraws them where something hints at it."""

    kind = "order"
    makes = "purity of labels and groups in a batch, batches of two epochs, the loss on redrawn batches"
    inputs = "a loader"
    cost = (
        "no pass; up to 16 batches where batches are of one kind or their statistics carry a part of the gap"
    )
    needs = ("measurement",)

    def obstacle(self, subject: Subject) -> str:
        """Without a loader there are no batches."""
        return "" if subject.loader is not None else "no data were given"

    def batches(self, subject: Subject) -> int:
        """As many as it may have."""
        return subject.max_batches

    def make(
        self, subject: Subject, evidence: Evidence, wanted: frozenset[Kind], limits: list[str]
    ) -> Mapping[str, Any]:
        """Looks; whatever fails on the way is a limit of the check."""
        try:
            return {"order": _Order(subject, evidence).facts()}
        except Exception as error:
            if strict() and not isinstance(error, VarshiftError):
                raise
            limits.append(f"Whether batch mates matter could not be measured ({type(error).__name__}).")
            return {"order": BatchOrder()}


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
        if labels is None or labels.share < PURE or labels.one_kind or random_order is not False:
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
        step = next((step for step in gap.steps if step.cause == "small-batch"), None) if gap else None
        if gap is None or step is None or step.delta is None or gap.metric != "loss":
            return False
        levels = [abs(value) for value in gap.states.values() if value is not None]
        error = 0.0 if same else _GATE_ERRORS * (step.stderr if step.stderr is not None else math.inf)
        return step.delta > max(_GATE_SHARE * min(levels, default=0.0), error)

    def _redrawn(self, random_order: bool | None) -> Redrawn | None:
        subject = self._subject
        calls = _spread(self._calls, REDRAWN)
        if not any(call.size > 1 for call in calls):
            return None
        source = "data set" if random_order is False and is_map_style(subject.loader) else "batches"
        others = self._at_random() if source == "data set" else []
        if not others:
            source, others = "batches", self._again(calls)
        if len(others) < 2:
            return None
        runner = subject.runner()
        drawn, redrawn = (runner.run(some, "batch", series=True) for some in (calls, others))
        before, after = _mean(drawn.losses, calls), _mean(redrawn.losses, others)
        if before is None or after is None:
            return None
        # Redrawn batches of the same samples: were the drawn ones like them, their mean would scatter as
        # that of another redraw does. Other samples bring the scatter of the drawn ones on top.
        errors = [_error(redrawn.losses), _error(drawn.losses if source == "data set" else redrawn.losses)]
        after_by_norm = redrawn.effective
        ratios = [
            after_by_norm[name] / value for name, value in drawn.effective.items() if after_by_norm.get(name)
        ]
        return Redrawn(
            source,  # type: ignore[arg-type]
            len(others),
            before,
            after,
            math.hypot(*errors),
            statistics.median(ratios) if ratios else None,
        )

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
        loader = self._subject.loader
        if not is_map_style(loader):
            return
        size = max(2, statistics.mode([call.size for call in self._calls]))
        count = min(REDRAWN, max(2, _FROM_DATA_SET // size))
        samples = len(loader.dataset)
        generator = torch.Generator().manual_seed(self._subject.seed)
        order = torch.randperm(samples, generator=generator, device="cpu")[: size * count].tolist()
        for start in range(0, len(order) - size + 1, size):
            items = [loader.dataset[index] for index in order[start : start + size]]
            batch = move(loader.collate_fn(items), self._subject.device)
            yield self._subject.reader.read(batch)


def _spread(calls: Sequence[Call], count: int) -> list[Call]:
    """Some of the batches, spread evenly over all of them; whole ones only, as a rule."""
    largest = max((call.size for call in calls), default=0)
    whole = [call for call in calls if call.size == largest]
    chosen = whole if len(whole) >= 2 else list(calls)
    if len(chosen) <= count:
        return chosen
    return [chosen[round(number * (len(chosen) - 1) / (count - 1))] for number in range(count)]


def _mean(losses: Sequence[float | None], calls: Sequence[Call]) -> float | None:
    known = [(loss, call.size) for loss, call in zip(losses, calls, strict=True) if loss is not None]
    if len(known) < len(losses) or not known or not all(math.isfinite(loss) for loss, _ in known):
        return None
    return sum(loss * size for loss, size in known) / sum(size for _, size in known)


def _error(losses: Sequence[float | None]) -> float:
    known = [loss for loss in losses if loss is not None]
    return statistics.stdev(known) / math.sqrt(len(known)) if len(known) > 1 else math.inf
