"""What of a recipe is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from varshift_lab.render import CLAIMS
from varshift_lab.verbs._lab_options import nearest

if TYPE_CHECKING:
    from varshift.trials import Trial
    from varshift_lab.studies import Claim, Figure, Recipe, Scale, Table


@dataclass(frozen=True, slots=True)
class Chosen:
    """Tables, figures and claims of one recipe at one scale.

    Attributes:
        recipe: The recipe.
        scale: The scale.
        tables: The tables asked for.
        figures: The figures asked for.
        claims: The claims, if they are asked for.
    """

    recipe: Recipe
    scale: Scale
    tables: tuple[Table, ...]
    figures: tuple[Figure, ...]
    claims: tuple[Claim, ...]

    def studies(self) -> dict[str, list[Trial]]:
        """By name, the trials that each needs."""
        from varshift_lab.studies import trials_of

        found = {one.name: trials_of(one.series()) for one in (*self.tables, *self.figures)}
        if self.claims:
            found[CLAIMS] = trials_of(series for claim in self.claims for series in claim.series())
        return found

    def trials(self) -> list[Trial]:
        """All trials, each once."""
        return list(dict.fromkeys(trial for trials in self.studies().values() for trial in trials))


def choose(name: str, scale: str, only: Sequence[str] = (), seeds: int | None = None) -> Chosen:
    """Tables, figures and claims of a recipe, all of them unless some are named.

    Args:
        name: Name of the recipe.
        scale: Name of the scale.
        only: Names of tables and figures, or ``claims``.
        seeds: So many seeds for each series; those of the recipe by default.

    Raises:
        VarshiftError: If there is no recipe, table or figure of that name.
    """
    from varshift import VarshiftError
    from varshift_lab.recipes import recipe, recipe_names
    from varshift_lab.studies import SCALES, with_seeds

    if name not in recipe_names():
        raise VarshiftError(nearest("recipe", name, recipe_names()))
    found = recipe(name)
    known = [*found.tables, *found.figures, *([CLAIMS] if found.claims is not None else [])]
    for wanted in only:
        if wanted not in known:
            raise VarshiftError(nearest("table or figure", wanted, known, where=f" in {name}"))
    exact: Scale = next(one for one in SCALES if one == scale)

    def asked(of: str) -> bool:
        return not only or of in only

    tables = tuple(make(exact) for key, make in found.tables.items() if asked(key))
    figures = tuple(make(exact) for key, make in found.figures.items() if asked(key))
    claims = found.claims(exact) if found.claims is not None and asked(CLAIMS) else ()
    if seeds is not None:
        tables = tuple(with_seeds(table, seeds) for table in tables)
        figures = tuple(with_seeds(figure, seeds) for figure in figures)
        claims = tuple(with_seeds(claim, seeds) for claim in claims)
    return Chosen(found, exact, tables, figures, claims)
