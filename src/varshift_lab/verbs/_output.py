"""Shows and writes what was asked for. What one table lacks does not keep the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from varshift import VarshiftError
from varshift_lab.render import CLAIMS

if TYPE_CHECKING:
    from varshift_lab.render import Results
    from varshift_lab.verbs._chosen import Chosen

BROKEN = 2
T = TypeVar("T")


def default_folder(chosen: Chosen) -> Path:
    """Where results go unless the user says otherwise."""
    return Path("results") / chosen.recipe.name / chosen.scale


def show(chosen: Chosen, results: Results) -> list[str]:
    """Prints tables and verdicts and returns what could not be shown, and why."""
    from varshift.cli import wide_console
    from varshift_lab.render import print_claims, print_table, verdict

    console = wide_console()
    tasks: list[tuple[str, Callable[[], None]]] = [
        (table.name, lambda table=table: print_table(console, table, results)) for table in chosen.tables
    ]
    if chosen.claims:
        tasks.append(
            (CLAIMS, lambda: print_claims(console, [verdict(claim, results) for claim in chosen.claims]))
        )
    trouble: list[str] = []
    for _ in _each(tasks, trouble):
        pass
    return trouble


def write(chosen: Chosen, results: Results, folder: Path) -> tuple[list[Path], list[str]]:
    """Writes tables, figures and verdicts; returns the files, and what could not be written and why."""
    from varshift_lab.render import write_claims, write_figure, write_table

    tasks: list[tuple[str, Callable[[], list[Path]]]] = [
        (table.name, lambda table=table: write_table(table, results, folder)) for table in chosen.tables
    ]
    tasks += [
        (figure.name, lambda figure=figure: write_figure(figure, results, folder))
        for figure in chosen.figures
    ]
    if chosen.claims:
        title = f"{chosen.recipe.title}: claims, {chosen.scale} scale"
        tasks.append((CLAIMS, lambda: write_claims(title, chosen.claims, results, folder)))
    trouble: list[str] = []
    return [file for files in _each(tasks, trouble) for file in files], trouble


def report_trouble(trouble: Sequence[str]) -> int:
    """Says what could not be done, each thing once, and returns the exit code."""
    from varshift.cli import print_error

    for text in dict.fromkeys(trouble):
        print_error(VarshiftError(text), verbose=False)
    return BROKEN if trouble else 0


def _each(tasks: Sequence[tuple[str, Callable[[], T]]], trouble: list[str]) -> Iterator[T]:
    for name, task in tasks:
        try:
            yield task()
        except VarshiftError as error:
            trouble.append(f"{name}: {error}")
