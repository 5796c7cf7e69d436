"""``varshift explain``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer


def explain(
    code: Annotated[
        str, typer.Argument(metavar="CODE", help="Code or name of a rule: `VS101`.", show_default=False)
    ],
) -> int:
    """Show the page of one rule: what it does, why it matters, how it is measured, what cures it."""
    from varshift.rules import get_rule

    page = get_rule(code).page()
    if not sys.stdout.isatty():  # Markdown for whoever reads it next
        typer.echo(page.rstrip("\n"))
        return 0
    from rich.console import Console
    from rich.markdown import Markdown

    console = Console()
    console.print(Markdown(page), width=min(console.width, 100))
    return 0
