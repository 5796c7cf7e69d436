"""Shows and writes what was asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from varshift_lab.render import Results
    from varshift_lab.verbs._chosen import Chosen


def default_folder(chosen: Chosen) -> Path:
    """Where results go unless the user says otherwise."""
    return Path("results") / chosen.recipe.name / chosen.scale


def show(chosen: Chosen, results: Results) -> None:
    """Prints tables and verdicts."""
    from varshift.cli._console import wide_console
    from varshift_lab.render import print_claims, print_table, verdict

    console = wide_console()
    for table in chosen.tables:
        print_table(console, table, results)
    if chosen.claims:
        print_claims(console, [verdict(claim, results) for claim in chosen.claims])


def write(chosen: Chosen, results: Results, folder: Path) -> list[Path]:
    """Writes tables, figures and verdicts and returns the files."""
    from varshift_lab.render import write_claims, write_figure, write_table

    files: list[Path] = []
    for table in chosen.tables:
        files += write_table(table, results, folder)
    for figure in chosen.figures:
        files += write_figure(figure, results, folder)
    if chosen.claims:
        title = f"{chosen.recipe.title}: claims, {chosen.scale} scale"
        files += write_claims(title, chosen.claims, results, folder)
    return files
