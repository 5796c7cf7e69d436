"""``varshift lab figure``."""

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


def figure(
    recipe: RecipeArgument,
    name: NameArgument = None,
    scale: ScaleOption = ScaleName.smoke,
    store: StoreOption = STORE,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="Folder; `results/RECIPE/SCALE` by default.", show_default=False
        ),
    ] = None,
    seeds: SeedsOption = None,
) -> int:
    """Draw figures from what has been run, complete or not."""
    from varshift.store import Store
    from varshift_lab.verbs._chosen import choose
    from varshift_lab.verbs._output import default_folder, report_trouble, write

    chosen = replace(choose(recipe, scale, (name,) if name else (), seeds), tables=(), claims=())
    with Store(store, create=False) as opened:
        results = opened.results(chosen.trials())
    files, trouble = write(chosen, results, out or default_folder(chosen))
    for path in files:
        typer.echo(path)
    return report_trouble(trouble)
