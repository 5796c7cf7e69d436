"""``varshift lab status``."""

from __future__ import annotations

from typing import Annotated

import typer

from varshift_lab.verbs._lab_options import STORE, StoreOption, nearest


def status(
    recipe: Annotated[
        str | None,
        typer.Argument(metavar="[RECIPE]", help="Name of a recipe; all by default.", show_default=False),
    ] = None,
    store: StoreOption = STORE,
) -> int:
    """Show how far each recipe is, what runs now, how long the rest may take, and what failed and why."""
    from rich.table import Table

    from varshift import VarshiftError
    from varshift.cli import wide_console
    from varshift.store import Store
    from varshift_lab.verbs._follow import time_left

    with Store(store, create=False) as opened:
        wanted = [one for one in opened.wanted() if recipe in (None, one[0])]
        if recipe is not None and not wanted:
            raise VarshiftError(
                nearest("recipe", recipe, {one[0] for one in opened.wanted()}, where=f" in {store}")
            )
        grid = Table(box=None, pad_edge=False)
        for heading in ("recipe", "scale"):
            grid.add_column(heading)
        for heading in ("done", "running", "queued", "failed"):
            grid.add_column(heading, justify="right")
        grid.add_column("time left")
        trouble = []
        for name, scale, keys in wanted:
            progress = opened.progress(keys)
            counts = [str(progress.counts[state]) for state in ("done", "running", "queued", "failed")]
            grid.add_row(name, scale, *counts, time_left(progress, progress.counts["running"]))
            trouble += [(name, scale, run) for run in opened.runs(keys) if run.state in ("failed", "running")]
    console = wide_console()
    console.print(grid)
    for state in ("running", "failed"):
        runs = {run.key: (name, scale, run) for name, scale, run in trouble if run.state == state}
        if runs:
            console.print(f"\n{state}:", style="bold")
        for name, scale, run in runs.values():
            where = f" on {run.machine}" if state == "running" and run.machine else ""
            said = f": {run.reason}" if run.reason else f", {run.seconds:.0f} s{where}"
            console.print(f"  {run.key}  {name} {scale}, {run.title}{said}", markup=False, soft_wrap=True)
    if any(run.state == "failed" for _, _, run in trouble):
        console.print(
            "\n`varshift lab run RECIPE --scale SCALE --retry` tries failed trials again.", markup=False
        )
    return 0
