"""Progress of long work on standard error."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from varshift.probe import Progress as Follow


@contextlib.contextmanager
def progress_bar() -> Iterator[Follow | None]:
    """A bar that follows calls with stage, steps done and steps in all; None where nobody would see it."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[count]}"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    task = bar.add_task("starting", total=None, count="")

    def follow(stage: str, done: int, total: int | None) -> None:
        count = f"{done}/{total}" if total else str(done or "")
        begins = bar.tasks[task].description != stage  # a new stage is shown at once, however short it is
        bar.update(task, description=stage, completed=done, total=total, count=count, refresh=begins)

    with bar:
        yield follow
