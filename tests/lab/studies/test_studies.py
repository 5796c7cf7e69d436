"""Recipes count every trial once; more seeds count on."""

from dataclasses import dataclass

import pytest

from varshift.trials import Trial
from varshift_lab.studies import Claim, Curve, Figure, Panel, Recipe, Row, Series, Table, with_seeds


@dataclass(frozen=True)
class Shape:
    sides: tuple[float, ...]


@dataclass(frozen=True)
class Area(Trial):
    shape: Shape
    label: str | None = None

    def run(self, workbench):
        width, height = self.shape.sides
        return {"area": width * height + self.seed}


def test_a_recipe_lists_every_trial_once():
    trials = tuple(Area(seed, Shape((1.0, 1.0))) for seed in range(3))
    other = (Area(0, Shape((2.0, 2.0))),)
    table = Table("t", "T", ("what",), "m2", (Row(("a",), Series(trials, "area")),))
    claim = Claim("smaller", Series(trials[:1], "area"), Series(other, "area"))
    recipe = Recipe("areas", "Areas", "nobody", {"t": lambda scale: table}, claims=lambda scale: (claim,))
    assert recipe.trials("smoke") == [*trials, *other]
    with pytest.raises(ValueError, match="scale='huge'"):
        recipe.trials("huge")


def test_a_row_has_a_label_for_each_column():
    with pytest.raises(ValueError, match="one for each of the columns"):
        Table("t", "T", ("a", "b"), "", (Row(("a",), Series((), "x")),))


def series_of(*trials):
    return Series(tuple(trials), "area")


def test_more_seeds_count_on_and_fewer_are_the_first():
    trials = [Area(seed, Shape((1.0, 1.0))) for seed in (3, 1, 7)]
    claim = Claim("smaller", series_of(*trials), series_of(Area(0, Shape((2.0, 2.0)))))
    assert [trial.seed for trial in with_seeds(claim, 2).lower.trials] == [3, 1]
    more = with_seeds(claim, 5)
    assert [trial.seed for trial in more.lower.trials] == [3, 1, 7, 8, 9]
    assert [trial.seed for trial in more.higher.trials] == [0, 1, 2, 3, 4]
    assert {trial.shape for trial in more.lower.trials} == {Shape((1.0, 1.0))}


def test_seeds_of_a_whole_table_and_figure_are_changed():
    series = series_of(*(Area(seed, Shape((1.0, 1.0))) for seed in range(3)))
    table = Table("t", "T", ("what",), "m2", (Row(("a",), series),))
    panel = Panel("p", (Curve("c", (series, series)),), "x", "y", picture=series)
    for study in (table, Figure("f", "F", (panel,))):
        assert {len(one.trials) for one in with_seeds(study, 4).series()} == {4}
        assert with_seeds(study, 3) == study


def test_trials_that_differ_in_more_than_the_seed_are_left_alone():
    mixed = series_of(Area(0, Shape((1.0, 1.0))), Area(1, Shape((2.0, 1.0))))
    assert with_seeds(mixed, 5) == mixed
    assert with_seeds(series_of(), 5) == series_of()
