"""Tables and verdicts on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from varshift_lab.render._claims import Verdict
from varshift_lab.render._lines import lines
from varshift_lab.render._markdown import outcome_text
from varshift_lab.render._numbers import deviation_text, mean_text, short
from varshift_lab.render._values import Results
from varshift_lab.studies import Table

if TYPE_CHECKING:
    from rich.console import Console

_COLOURS = {"reproduced": "green", "not reproduced": "red", "undecided": "yellow"}


def print_table(console: Console, table: Table, results: Results) -> None:
    """Prints what matters of a table; what each row ran on stands in the files."""
    from rich.table import Table as Grid

    grid = Grid(box=None, pad_edge=False, title=table.title, title_justify="left", title_style="bold")
    for heading in table.columns:
        grid.add_column(heading)
    for heading in (table.unit, "n", "paper", "s per run"):
        grid.add_column(heading, justify="right")
    for line in lines(table, results):
        deviation = deviation_text(line.values)
        plus_minus = "±" if (console.encoding or "").startswith("utf") else "+-"
        count = str(line.values.count)
        grid.add_row(
            *line.labels,
            (mean_text(line.values) or "missing") + (f" {plus_minus} {deviation}" if deviation else ""),
            f"{count} of {line.values.count + len(line.missing)}" if line.missing else count,
            f"{line.paper.value:g}" if line.paper is not None else "",
            short(line.seconds),
        )
    console.print(grid)
    console.print()


def print_claims(console: Console, verdicts: Sequence[Verdict]) -> None:
    """Prints verdicts."""
    from rich.table import Table as Grid
    from rich.text import Text

    grid = Grid(box=None, pad_edge=False, title="Claims", title_justify="left", title_style="bold")
    grid.add_column("verdict")
    grid.add_column("difference", justify="right")
    grid.add_column("s.e.", justify="right")
    grid.add_column("n", justify="right")
    grid.add_column("claim")
    for one in verdicts:
        grid.add_row(
            Text(outcome_text(one), style=_COLOURS[one.outcome]),
            mean_text(one.difference),
            short(one.difference.error, 2),
            str(one.difference.count),
            one.claim.text,
        )
    console.print(grid)
    console.print()
