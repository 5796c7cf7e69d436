"""Knows when starting workers is of no use."""

from __future__ import annotations

from varshift.runner._errors import RunnerError

# If this many workers in a row end before they could begin a trial, the next ones will too.
MOST_FUTILE = 3


class Futile:
    """Counts workers that ended before they could begin a trial.

    Args:
        where: Where the user can read what they said.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._count = 0

    def note(self, how: str | None) -> None:
        """Notes how a worker ended that could not begin, or None for one that did.

        Raises:
            RunnerError: If it was one too many in a row.
        """
        self._count = 0 if how is None else self._count + 1
        if self._count >= MOST_FUTILE:
            raise RunnerError(
                f"{self._count} workers in a row ended before they could begin a trial, the last one {how}; "
                f"{self._where}."
            )
