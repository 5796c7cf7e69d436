"""The same samples alone and with other batch mates, in eval mode."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from varshift._errors import VarshiftError, strict
from varshift.flow import Parting
from varshift.model import Call, short_message_of
from varshift.probe._eval_runs import EvalRuns
from varshift.probe._samples_apart import sample_distance
from varshift.probe._trial_types import SAMPLES, Change, Incomparable

_SUBJECTS = 3  # samples that are looked at
# Kernels choose other blockings for other batch sizes: about 1e-6 in float32 and 1e-3 in half precision. How
# much it is in this network is measured where it matters, on a batch in which every sample occurs twice.
_ROUNDING, _MOST_ROUNDING = 1e-3, 5e-2
_TIMES_ROUNDING = 10.0


def change_company(runs: EvalRuns, call: Call) -> list[Change]:
    """Runs samples among their mates, alone, and with other mates.

    Args:
        runs: Runs the network.
        call: One batch.

    Raises:
        Incomparable: If the batch cannot be cut.
    """
    if call.size < 2:
        return []
    if call.take(min(SAMPLES, call.size)) is None:
        raise Incomparable("a batch cannot be cut, since its tensors refer to one another")
    return _Company(runs, call).changes()


class _Company:
    def __init__(self, runs: EvalRuns, call: Call) -> None:
        self._runs, self._call = runs, call
        self._size = min(SAMPLES, call.size)
        self._rounding: float | None = None

    def changes(self) -> list[Change]:
        """Tries both changes."""
        call = self._call
        whole = call.take(self._size)
        output = None if whole is None else self._runs.output(whole)
        if whole is None or output is None or output.dim() == 0:
            return []
        subjects = range(min(_SUBJECTS, self._size))
        changes = [self._alone(whole, output, subjects)]
        # One subject takes the place of a mate, so that the number is another one: that tells its dimension.
        others = [row for row in reversed(range(call.size)) if row not in subjects][: self._size - 2]
        rows = [*subjects, *others][: max(self._size - 1, 2)]
        if self._size <= len(subjects) + 1:
            rows = [*subjects, *reversed(subjects), 0]  # no others: its mates are repeated
        changes.append(self._mates(whole, output, rows, len(subjects)))
        return [change for change in changes if change is not None]

    def _alone(self, whole: Call, output: Tensor, subjects: range) -> Change | None:
        worst: tuple[float, int] | None = None
        for row in subjects:
            alone = self._call.pick([row])
            if alone is None:
                continue
            try:
                result = self._runs.output(alone)
            except VarshiftError as error:
                return Change("alone", None, failed=short_message_of(error.__cause__ or error))
            distance = self._distance(output, whole.size, result, 1, (row, 0))
            if distance is not None and (worst is None or distance > worst[0]):
                worst = distance, row
        if worst is None:
            return None
        difference, row = worst
        limit = self._limit(difference, whole, output)
        parting = None
        if difference > limit and (alone := self._call.pick([row])) is not None:
            parting = self._parting(whole, alone, (row, 0), limit)
        return Change("alone", difference, limit, parting)

    def _mates(self, whole: Call, output: Tensor, rows: list[int], subjects: int) -> Change | None:
        mixed = self._call.pick(rows)
        if mixed is None or len(rows) == whole.size:
            return None
        result = self._runs.output(mixed)
        distances = [
            self._distance(output, whole.size, result, len(rows), (row, row)) for row in range(subjects)
        ]
        known = [(distance, row) for row, distance in enumerate(distances) if distance is not None]
        if not known:
            return None
        difference, row = max(known)
        limit = self._limit(difference, whole, output)
        parting = self._parting(whole, mixed, (row, row), limit) if difference > limit else None
        return Change("mates", difference, limit, parting)

    def _distance(
        self, one: Tensor, size: int, other: Tensor | None, other_size: int, rows: tuple[int, int]
    ) -> float | None:
        return None if other is None else sample_distance(one, size, other, other_size, rows)

    def _limit(self, difference: float, whole: Call, output: Tensor) -> float:
        """What rounding explains: measured only where the difference is beyond the least of it."""
        if difference <= _ROUNDING:
            return _ROUNDING
        if self._rounding is None:
            size = whole.size
            twice = self._call.pick([*range(size), *range(size)])
            result = None if twice is None else self._runs.output(twice)
            distances = [
                self._distance(output, size, result, 2 * size, (row, row)) or 0.0 for row in range(size)
            ]
            self._rounding = max(distances)
        return min(max(_ROUNDING, _TIMES_ROUNDING * self._rounding), _MOST_ROUNDING)

    def _parting(self, whole: Call, other: Call, rows: tuple[int, int], limit: float) -> Parting | None:
        distance = partial(_between, whole.size, other.size, rows)
        try:
            return self._runs.parting(whole, other, distance, limit)
        except Exception:  # a forward that cannot be recorded: the change is known, its place is not
            if strict():
                raise
            return None


def _between(size: int, other_size: int, rows: tuple[int, int], one: Tensor, other: Tensor) -> float | None:
    return sample_distance(one, size, other, other_size, rows)
