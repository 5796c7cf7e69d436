"""The console that verbs print to."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

WIDTH = 100


def wide_console(*, to_error: bool = False) -> Console:
    """A console that, where nothing says how wide it is, is wide enough for tables."""
    from rich.console import Console

    console = Console(stderr=to_error, highlight=False)
    if console.is_terminal or "COLUMNS" in os.environ:
        return console
    return Console(stderr=to_error, highlight=False, width=WIDTH)
