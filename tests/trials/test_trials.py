"""Trials, their names and their way into a store and back."""

from dataclasses import dataclass

import pytest

from varshift import VarshiftError
from varshift.trials import Trial, Workbench, decode, encode


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
