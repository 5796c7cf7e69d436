"""The numbers in the names of noise sites: one per call, the same in both modes and for any rate.

A site is named by its module, its kind and a number. The rules, all of them here:

- Calls of noise operators (dropout, attention with dropout, recurrent layers) are numbered in order of
  execution within one pass, per module and kind. Calls that do not act, with a rate of zero or switched off,
  are counted: a rate moves no name.
- Noise written by hand (a mask that is drawn and multiplied) exists only while it acts. It is numbered after
  the operator calls of its module and kind, so that it moves no name of theirs.
- A module that runs several times in a pass goes on counting: every run is a place of its own.
- The mode captured second takes over the numbers of the first, call by call: by the calls that led there,
  then by the place inside the module. What the first did not run is numbered last.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

_Group = tuple[str, str, bool]


@dataclass(frozen=True, slots=True)
class NoiseCall:
    """A call that makes noise, or would with another rate or mode.

    Attributes:
        module: Path of the module whose forward makes the call.
        kind: Kind of the noise.
        operator: Whether an operator makes it, not arithmetic with random numbers.
        way: What identifies all the calls that led there.
        place: What identifies those inside the module only.
    """

    module: str
    kind: str
    operator: bool
    way: Hashable
    place: Hashable


class Numbering:
    """Numbers the calls of one network, mode after mode."""

    def __init__(self) -> None:
        self._groups: dict[_Group, list[tuple[NoiseCall, int]]] = defaultdict(list)
        self._count: Counter[tuple[str, str]] = Counter()

    def number(self, calls: Sequence[NoiseCall]) -> list[int]:
        """The number of each call of one pass.

        Args:
            calls: All calls of the pass in order of execution, those that do not act included.
        """
        numbers = [0] * len(calls)
        groups: dict[_Group, list[int]] = defaultdict(list)
        for index, call in enumerate(calls):
            groups[call.module, call.kind, call.operator].append(index)
        for operator in (True, False):
            for group, members in groups.items():
                if group[2] is operator:
                    self._take_over(group, calls, members, numbers)
        return numbers

    def _take_over(
        self, group: _Group, calls: Sequence[NoiseCall], members: list[int], numbers: list[int]
    ) -> None:
        known = list(self._groups[group])
        fresh = list(members)
        ways: tuple[Callable[[NoiseCall], Hashable], ...] = (
            lambda call: call.way,
            lambda call: call.place,
        )
        for identity in ways:
            if not (known and fresh):
                break
            earlier = [identity(call) for call, _ in known]
            later = [identity(calls[index]) for index in fresh]
            pairs = _pairs(earlier, later)
            for first, second in pairs:
                numbers[fresh[second]] = known[first][1]
            taken = {first for first, _ in pairs}, {second for _, second in pairs}
            known = [item for place, item in enumerate(known) if place not in taken[0]]
            fresh = [item for place, item in enumerate(fresh) if place not in taken[1]]
        for index in fresh:
            self._count[group[:2]] += 1
            numbers[index] = self._count[group[:2]]
            self._groups[group].append((calls[index], numbers[index]))


def _pairs(earlier: list[Hashable], later: list[Hashable]) -> list[tuple[int, int]]:
    """Equal items of two lists, in the order of both."""
    if earlier == later:
        return [(index, index) for index in range(len(earlier))]
    blocks = SequenceMatcher(None, earlier, later, autojunk=False).get_matching_blocks()
    return [(block.a + step, block.b + step) for block in blocks for step in range(block.size)]
