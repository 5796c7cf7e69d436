"""Trials, their names and their way into a store and back; recipes count every trial once."""

from dataclasses import dataclass

import pytest

from varshift import VarshiftError
from varshift_lab.studies import (
    Claim,
    Curve,
    Figure,
    Panel,
    Recipe,
    Row,
    Series,
    Table,
    Trial,
    Workbench,
    decode,
    encode,
    with_seeds,
)


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


def test_a_trial_comes_back_from_plain_data_as_it_was():
    trial = Area(3, Shape((1.5, 2.0)), None)
    assert decode(encode(trial)) == trial
    assert decode(encode(trial)).key == trial.key
    assert decode(encode(trial)).run(Workbench()) == {"area": 6.0}


def test_the_key_follows_the_content():
    keys = {
        Area(seed, Shape(sides), label).key
        for seed in (0, 1)
        for sides in ((1.0, 2.0), (2.0, 1.0))
        for label in (None, "a")
    }
    assert len(keys) == 8
    assert Area(0, Shape((1.0, 2.0))).key == Area(0, Shape((1.0, 2.0))).key


@pytest.mark.parametrize("bad", [[1], {"a": 1}, object(), {1}])
def test_what_cannot_be_stored_is_refused(bad):
    with pytest.raises(TypeError, match="cannot be part of a trial"):
        encode(Area(0, Shape(bad)))


def test_numbers_must_be_finite():
    with pytest.raises(ValueError, match="finite"):
        encode(Area(0, Shape((float("nan"),))))


@pytest.mark.parametrize(
    "change",
    [{"type": "no_such_module:X"}, {"type": "os:system"}, {"type": 3}, {"wrong": 1}],
)
def test_a_stored_trial_that_does_not_fit_is_refused(change):
    with pytest.raises(VarshiftError, match="queue it again"):
        decode({**encode(Area(0, Shape(()))), **change})


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
