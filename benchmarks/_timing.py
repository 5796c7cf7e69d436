"""Ratios of running times, measured in turn in one process so that a drifting machine hurts all alike."""

from __future__ import annotations

import gc
import platform
import random
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"


def in_turn(
    functions: dict[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Runs all functions once to warm up, then in every round each once, in random order.

    Returns:
        Seconds per function and round, by default those on the wall.
    """
    for function in functions.values():
        function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    names = list(functions)
    for _ in range(rounds):
        random.shuffle(names)
        for name in names:
            gc.collect()
            start = clock()
            functions[name]()
            seconds[name].append(clock() - start)
    return seconds


def ratio(seconds: dict[str, list[float]], above: str, below: str) -> tuple[float, float, float]:
    """Median of the round-by-round ratios, with their quartiles."""
    ratios = [a / b for a, b in zip(seconds[above], seconds[below], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return middle, low, high


def show(value: tuple[float, float, float]) -> str:
    """A ratio with its quartiles."""
    return f"{value[0]:.3f} ({value[1]:.2f} to {value[2]:.2f})"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def provenance() -> str:
    """Where and when the figures were measured."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return (
        f"torch {torch.__version__}, Python {platform.python_version()}, {device}, "
        f"{torch.get_num_threads()} threads, {datetime.now(UTC):%Y-%m-%d}"
    )


def write(name: str, title: str, text: str) -> None:
    """Prints a result and stores it under ``results/``."""
    page = f"# {title}\n\n{provenance()}\n\n{text}\n"
    print(page)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(page)
