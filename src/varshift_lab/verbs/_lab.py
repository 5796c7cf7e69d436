"""``varshift lab``: the table of its verbs."""

from __future__ import annotations

import typer

from varshift_lab.verbs._figure import figure
from varshift_lab.verbs._list import list_recipes
from varshift_lab.verbs._run import run
from varshift_lab.verbs._status import status
from varshift_lab.verbs._table import table

lab = typer.Typer(
    name="lab",
    help="Train the papers' networks and rebuild their tables and figures.\n\n"
    "What has been run is kept in a store and never run twice; `run` goes on wherever it was interrupted.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
lab.command("list")(list_recipes)
lab.command("run")(run)
lab.command("status")(status)
lab.command("table")(table)
lab.command("figure")(figure)
