"""Arguments and options that the lab's verbs share, and how they are checked."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

STORE = Path("varshift-lab")


class ScaleName(StrEnum):
    """How much is run."""

    smoke = "smoke"
    laptop = "laptop"
    paper = "paper"


RecipeArgument = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE", help="Name of a recipe; `varshift lab list` shows all.", show_default=False
    ),
]
NameArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="[NAME]",
        help="Name of one of its tables, figures, or `claims`; all by default.",
        show_default=False,
    ),
]
ScaleOption = Annotated[
    ScaleName,
    typer.Option(
        "--scale",
        help="`smoke`: minutes, to see that all of it works; `laptop`: the papers' claims, in an hour or so; "
        "`paper`: the papers' networks, data and schedules.",
    ),
]
StoreOption = Annotated[
    Path,
    typer.Option(
        "--store",
        metavar="DIR",
        envvar="VARSHIFT_LAB_STORE",
        help="Folder of the queue, the logs and the results.",
    ),
]
SeedsOption = Annotated[
    int | None,
    typer.Option(
        "--seeds",
        min=1,
        help="So many seeds for each row, fewer or more than the recipe's own.",
        show_default=False,
    ),
]


def nearest(what: str, name: str, known: Iterable[str], *, where: str = "") -> str:
    """One line for a name that nothing has, with the names nearest to it."""
    import difflib

    known = list(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if near:
        return f"there is no {what} {name!r}{where}; did you mean {' or '.join(near)}?"
    return f"there is no {what} {name!r}{where}; there is {', '.join(known) or 'none'}."
