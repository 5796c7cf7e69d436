"""What one run of the command line knows besides the arguments of its verb."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class State:
    """Shared by the main function and the verbs.

    Attributes:
        verbose: Whether errors come with their traceback.
        words: The words after ``varshift``.
    """

    verbose: bool = False
    words: tuple[str, ...] = ()
