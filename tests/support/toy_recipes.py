"""Recipes of random walks, to stand in for the papers' on the command line."""

from __future__ import annotations

from toy_trials import Fault, toy_recipe

from varshift_lab.studies import Recipe, Row, Series, Table


def broken_recipe(cure=""):
    """A recipe with a table that fails beside one that does not."""

    def table(scale):
        rows = tuple(
            Row((how,), Series((Fault(0, how, cure), Fault(1, how, cure)), "place"))
            for how in ("trial", "full")
        )
        return Table("table1", "What fails", ("how",), "paces", rows)

    return Recipe("broken", "On faults", "Nobody, 2020", tables={"table1": table})


def astray_recipe():
    """A recipe whose second table asks for what nobody measures."""
    sound = toy_recipe()

    def table(scale):
        made = sound.tables["table1"](scale)
        rows = tuple(Row(row.labels, Series(row.series.trials, "palce")) for row in made.rows)
        return Table("table2", "Astray", made.columns, made.unit, rows)

    return Recipe("astray", "On errors", "Nobody, 2020", tables={**sound.tables, "table2": table})
