"""Verbs of other packages, through the entry-point group ``varshift.verbs``."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import typer

from varshift._errors import VarshiftError
from varshift.cli._errors import described, print_warning

GROUP = "varshift.verbs"
_OWN_DISTRIBUTION = "varshift"


def add_foreign_verbs(app: typer.Typer, own: set[str]) -> None:
    """Adds a verb for each entry point; what it refers to is imported when the verb is used.

    An entry point refers to a function with typer's annotations, or to a typer app. It cannot replace one of
    our own verbs, and of two with one name the first stands.
    """
    taken = set(own)
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: (not _is_ours(entry), entry.name)):
        if entry.name in taken:
            continue
        taken.add(entry.name)
        app.command(
            entry.name,
            help=_help(entry),
            add_help_option=False,
            context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
        )(_runner(entry))


def _is_ours(entry: EntryPoint) -> bool:
    return entry.dist is not None and entry.dist.name == _OWN_DISTRIBUTION


def _help(entry: EntryPoint) -> str:
    """The first line of our own verbs' help; other packages are not imported for a list of verbs."""
    if _is_ours(entry):
        try:
            verb = entry.load()
            text = verb.info.help if isinstance(verb, typer.Typer) else verb.__doc__
            lines = (text or "").strip().splitlines()
        except Exception:  # whatever is wrong with it comes to light when it is used
            lines = []
        if lines:
            return lines[0]
    origin = f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else entry.value
    return f"(from {origin})"


def _runner(entry: EntryPoint) -> Callable[[typer.Context], Any]:
    def run(context: typer.Context) -> Any:
        verb = _load(entry)
        if isinstance(verb, typer.Typer):
            app = verb
        else:
            app = typer.Typer(add_completion=False, rich_markup_mode="markdown")
            app.command(entry.name)(verb)
        return typer.main.get_command(app).main(
            args=list(context.args),
            prog_name=f"varshift {entry.name}",
            standalone_mode=False,
            obj=context.obj,
        )

    return run


def _load(entry: EntryPoint) -> Any:
    try:
        verb = entry.load()
    except Exception as error:
        print_warning(f"the verb {entry.name!r} of {entry.value} is broken: {described(error)}")
        raise VarshiftError(f"the verb {entry.name!r} cannot be used.") from error
    if not callable(verb):
        raise VarshiftError(
            f"the verb {entry.name!r} of {entry.value} is a {type(verb).__name__}, not a function."
        )
    return verb
