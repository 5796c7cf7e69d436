"""The table of verbs."""

from __future__ import annotations

from typing import Annotated

import typer

from varshift.cli._check import check
from varshift.cli._compare import compare
from varshift.cli._entry_points import add_foreign_verbs
from varshift.cli._explain import explain
from varshift.cli._fix import fix
from varshift.cli._recalibrate import recalibrate
from varshift.cli._rules import rules
from varshift.cli._state import State

VERBS = (check, fix, compare, recalibrate, explain, rules)

_HELP = """Why is my network good in train() and bad in eval()?

varshift finds the layer and the line of code, says how much it costs and why, and what cures it.

Exit codes: 0 clean, 1 findings, 2 it could not be done.
"""


def run(arguments: list[str], state: State) -> int:
    """Runs one verb and returns its exit code."""
    command = typer.main.get_command(build_app())
    result = command.main(args=arguments, prog_name="varshift", standalone_mode=False, obj=state)
    return result if isinstance(result, int) else 0


def build_app() -> typer.Typer:
    """The command line with our own verbs and those of other packages."""
    app = typer.Typer(name="varshift", help=_HELP, add_completion=False, rich_markup_mode="markdown")
    app.callback(invoke_without_command=True)(_front)
    for verb in VERBS:
        app.command()(verb)
    add_foreign_verbs(app, own={verb.__name__ for verb in VERBS})
    return app


def _show_version(wanted: bool) -> None:
    if wanted:
        from varshift import __version__

        typer.echo(f"varshift {__version__}")
        raise typer.Exit


def _front(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", is_eager=True, callback=_show_version)
    ] = False,
) -> int | None:
    if context.invoked_subcommand is None:
        return run(["--help"], State())
    return None


_front.__doc__ = _HELP
