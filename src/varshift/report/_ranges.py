"""Positions as ranges: what keeps reports of deep networks small."""

from __future__ import annotations

from collections.abc import Iterable


def ranges(positions: Iterable[int]) -> list[tuple[int, int]]:
    """Positions as ranges from the first to the one after the last, as in a slice.

    >>> ranges([3, 4, 5, 8])
    [(3, 6), (8, 9)]
    """
    result: list[tuple[int, int]] = []
    for position in sorted(set(positions)):
        if result and result[-1][1] == position:
            result[-1] = (result[-1][0], position + 1)
        else:
            result.append((position, position + 1))
    return result
