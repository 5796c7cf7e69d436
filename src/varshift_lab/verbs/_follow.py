"""Progress of a sweep, on standard error."""

from __future__ import annotations

import importlib.util
import sys
import time
from types import TracebackType
from typing import Any

from varshift.store import Progress

# Where nobody watches a bar, a line is written so often at most, and whenever a tenth is done.
LINE_SECONDS = 30.0


class Follower:
    """Shows how many trials are done: a bar on a terminal, a line now and then elsewhere.

    Args:
        name: What is run.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._bar: Any = None
        self._task: Any = None
        self._begun = time.monotonic()
        self._said = 0.0
        self._tenth = -1

    def __call__(self, progress: Progress, workers: int) -> None:
        """Shows the progress."""
        finished = progress.total - progress.open
        if self._bar is not None:
            title = progress.running[0] if progress.running else "starting workers" if workers else "waiting"
            more = f" and {len(progress.running) - 1} more" if len(progress.running) > 1 else ""
            self._bar.update(
                self._task,
                completed=finished,
                total=progress.total,
                count=_count(progress),
                left=time_left(progress, workers),
                title=title + more,
            )
            return
        now = time.monotonic()
        tenth = 10 * finished // max(progress.total, 1)
        if tenth != self._tenth or now - self._said >= LINE_SECONDS:
            self._tenth, self._said = tenth, now
            left = time_left(progress, workers)
            sys.stderr.write(f"{self._name}: {_count(progress)}{', ' + left if left else ''}\n")
            sys.stderr.flush()

    def __enter__(self) -> Follower:
        if sys.stderr.isatty() and importlib.util.find_spec("rich") is not None:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

            self._bar = Progress(
                SpinnerColumn(),
                TextColumn("{task.fields[count]}", markup=False),
                BarColumn(bar_width=24),
                TimeElapsedColumn(),
                TextColumn("{task.fields[left]}", markup=False),
                TextColumn("{task.fields[title]}", markup=False, style="dim"),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task(self._name, total=None, count="", left="", title="")
            self._bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()


def _count(progress: Progress) -> str:
    failed = progress.counts["failed"]
    text = f"{progress.counts['done']} of {progress.total} trials done"
    return f"{text}, {failed} failed" if failed else text


def time_left(progress: Progress, workers: int) -> str:
    """How long the rest may take; empty where nothing is left or nothing is known."""
    if progress.remaining_seconds is None or not progress.open:
        return ""
    seconds = progress.remaining_seconds / max(min(workers, progress.open), 1)
    return f"about {duration(seconds)} left"


def duration(seconds: float) -> str:
    """A duration in the units a person would use."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if seconds < 99.5 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
