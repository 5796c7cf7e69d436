"""A sweep over the toy recipe as a program of its own, that can be killed: ``toy_sweep.py STORE OUT``."""

from __future__ import annotations

import sys
from pathlib import Path

from toy_trials import toy_recipe

from varshift.runner import Assignment, executor, run
from varshift.store import Store
from varshift_lab.render import write_claims, write_table
from varshift_lab.verbs._follow import Follower


def sweep(folder, out, recipe, workers=2):
    trials = recipe.trials("smoke")
    with Store(folder) as store:
        keys = store.add(recipe.name, "smoke", {"all": trials})
        with Follower("toy") as follow:
            run(store, executor("local"), [Assignment(folder, tuple(keys))] * workers, follow)
        results = store.results(trials)
    for table in recipe.tables.values():
        write_table(table("smoke"), results, out)
    write_claims("Claims", recipe.claims("smoke"), results, out)


if __name__ == "__main__":
    sweep(Path(sys.argv[1]), Path(sys.argv[2]), toy_recipe(seeds=6, steps=16, pause=0.08))
