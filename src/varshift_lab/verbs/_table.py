"""``varshift lab table``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from varshift_lab.verbs._lab_options import (
    STORE,
    NameArgument,
    RecipeArgument,
    ScaleName,
    ScaleOption,
    SeedsOption,
    StoreOption,
)


def table(
    recipe: RecipeArgument,
    name: NameArgument = None,
    scale: ScaleOption = ScaleName.smoke,
    store: StoreOption = STORE,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="Write Markdown and CSV into a folder too.", show_default=False
        ),
    ] = None,
    seeds: SeedsOption = None,
) -> int:
    """Show tables and the verdicts on claims from what has been run, complete or not."""
    from varshift.store import Store
    from varshift_lab.verbs._chosen import choose
    from varshift_lab.verbs._output import report_trouble, show, write

    chosen = replace(choose(recipe, scale, (name,) if name else (), seeds), figures=())
    with Store(store, create=False) as opened:
        results = opened.results(chosen.trials())
    trouble = show(chosen, results)
    if out is not None:
        files, more = write(chosen, results, out)
        trouble += more
        typer.echo(f"Written to {out}: {', '.join(file.name for file in files)}.")
    return report_trouble(trouble)
