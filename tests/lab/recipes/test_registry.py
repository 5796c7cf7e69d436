"""Recipes are found by name, ours and those of other packages."""

import pytest

from varshift import VarshiftError
from varshift_lab import recipes
from varshift_lab.studies import Recipe

FOREIGN = Recipe("foreign", "A recipe from elsewhere", "nobody")
NO_RECIPE = 3


@pytest.mark.parametrize("name", recipes.recipe_names())
def test_every_name_leads_to_its_recipe(name):
    found = recipes.recipe(name)
    assert found.name == name
    assert found.tables or found.figures


def test_unknown_names_are_answered_with_near_ones():
    with pytest.raises(VarshiftError, match="no recipe 'varianceshift': use variance-shift"):
        recipes.recipe("varianceshift")
    with pytest.raises(VarshiftError, match="variance-shift or"):
        recipes.recipe("qqq")


def test_other_packages_join(monkeypatch):
    monkeypatch.setattr(recipes, "_others", lambda: {"foreign": Point(FOREIGN)})
    assert recipes.recipe_names()[-1] == "foreign"
    assert recipes.recipe("foreign") is FOREIGN


def test_ours_cannot_be_replaced(monkeypatch):
    monkeypatch.setattr(recipes, "_others", lambda: {"variance-shift": Point(FOREIGN)})
    assert recipes.recipe("variance-shift").name == "variance-shift"
    assert recipes.recipe_names().count("variance-shift") == 1


@pytest.mark.parametrize(
    ("value", "message"),
    [(NO_RECIPE, "is a int, not a Recipe"), (ImportError("no such thing"), "cannot be loaded")],
)
def test_what_others_offer_is_checked(monkeypatch, value, message):
    monkeypatch.setattr(recipes, "_others", lambda: {"foreign": Point(value)})
    with pytest.raises(VarshiftError, match=message):
        recipes.recipe("foreign")


def test_names_need_no_torch():
    import subprocess
    import sys

    code = "import sys, varshift_lab.recipes as r; r.recipe_names(); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


class Point:
    """An entry point that holds its object."""

    value = "somewhere:RECIPE"

    def __init__(self, held):
        self.held = held

    def load(self):
        if isinstance(self.held, Exception):
            raise self.held
        return self.held
