"""``varshift lab list``."""

from __future__ import annotations


def list_recipes() -> int:
    """Show all recipes: their tables and figures, and how many trials each scale takes."""
    from rich.table import Table

    from varshift.cli import described, wide_console
    from varshift_lab.recipes import recipe, recipe_names
    from varshift_lab.render import CLAIMS
    from varshift_lab.studies import SCALES
    from varshift_lab.verbs._output import report_trouble

    grid = Table(box=None, pad_edge=False)
    grid.add_column("recipe", no_wrap=True)
    grid.add_column("paper, tables and figures")
    for scale in SCALES:
        grid.add_column(scale, justify="right")
    broken = []
    for name in recipe_names():
        try:
            found = recipe(name)
        except Exception as error:  # one broken recipe, of another package perhaps, hides none of the others
            broken.append(f"recipe {name!r} cannot be used: {described(error)}")
            continue
        studies = [*found.tables, *found.figures, *([CLAIMS] if found.claims is not None else [])]
        counts = [str(len(found.trials(scale))) for scale in SCALES]
        grid.add_row(name, f"{found.title} ({found.source})\n{', '.join(studies)}\n", *counts)
    wide_console().print(grid)
    return report_trouble(broken)
