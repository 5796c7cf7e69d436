"""``varshift lab``: from a recipe's name to tables and figures."""

import csv
import subprocess
import sys

import pytest
from toy_recipes import astray_recipe, broken_recipe
from toy_trials import toy_recipe

import varshift_lab.recipes


@pytest.fixture(autouse=True)
def recipes(monkeypatch, place):
    """Toy recipes in the place of the papers'."""
    known = {
        "toy": toy_recipe(),
        "broken": broken_recipe(str(place / "cure")),
        "astray": astray_recipe(),
        "unreadable": None,
    }

    def recipe(name):
        if known[name] is None:
            raise ImportError("no module of that name")
        return known[name]

    monkeypatch.setattr(varshift_lab.recipes, "recipe", recipe)
    monkeypatch.setattr(varshift_lab.recipes, "recipe_names", lambda: tuple(known))


def test_run_writes_tables_figures_and_verdicts(run, place):
    result = run("lab", "run", "toy", "--workers", 1)
    assert result.code == 0, result.err
    folder = place / "results" / "toy" / "smoke"
    names = ["claims.md", "figure1.png", "figure1.svg", "table1.csv", "table1.md"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert "Where walks end" in result.out
    assert "4.63 ± 0.49" in result.out
    assert "not reproduced" in result.out
    assert "Written to results/toy/smoke: table1.md" in result.out
    assert "9 of 9 trials done" in result.err
    rows = list(csv.DictReader((folder / "table1.csv").read_text().splitlines()))
    assert [row["walk"] for row in rows] == ["still", "drifting", "falling"]
    assert [row["n"] for row in rows] == ["3"] * 3

    # What has been run is not run again, and other verbs show it.
    before = (folder / "table1.csv").read_bytes()
    again = run("lab", "run", "toy")
    assert (again.code, again.err) == (0, "")
    assert (folder / "table1.csv").read_bytes() == before
    table = run("lab", "table", "toy", "table1")
    assert table.code == 0
    assert "4.63 ± 0.49" in table.out
    assert "Claims" not in table.out
    assert "reproduced" in run("lab", "table", "toy", "claims").out
    drawn = run("lab", "figure", "toy", "--out", "drawn")
    assert drawn.out.split() == ["drawn/figure1.png", "drawn/figure1.svg"]
    status = run("lab", "status")
    assert status.out.split("\n")[1].split() == ["toy", "smoke", "9", "0", "0", "0"]

    # More seeds need only what is new; fewer need nothing.
    more = run("lab", "run", "toy", "--only", "table1", "--seeds", 4, "--workers", 1)
    assert "9 of 12 trials done" in more.err
    assert "12 of 12 trials done" in more.err
    fewer = run("lab", "table", "toy", "table1", "--seeds", 2)
    assert "missing" not in fewer.out


def test_part_of_a_recipe_can_be_run_and_the_rest_is_said_to_be_missing(run, place):
    assert run("lab", "run", "toy", "--only", "figure1", "--seeds", 1, "--workers", 1).code == 0
    assert sorted(path.name for path in (place / "results/toy/smoke").iterdir()) == [
        "figure1.png",
        "figure1.svg",
    ]
    result = run("lab", "table", "toy", "--out", "tables")
    assert result.code == 0
    assert "1 of 3" in result.out
    assert "undecided (2 of 3 pairs missing)" in result.out
    assert "**Incomplete**: 6 of 9 values are missing." in (place / "tables" / "table1.md").read_text()


def test_failures_are_told_with_their_reason_and_can_be_tried_again(run, place):
    result = run("lab", "run", "broken", "--workers", 1)
    assert result.code == 1
    assert "the loss is not finite in epoch 3" in result.err
    assert "no space left on device" in result.err
    assert result.err.count("failed: Fault seed 0 and 1 more: ") == 2
    assert "4 of 4 trials failed; --retry tries them again." in result.err
    assert "missing" in result.out
    status = run("lab", "status", "broken")
    assert status.out.count("the loss is not finite in epoch 3") == 2
    assert "--retry" in status.out
    assert run("lab", "run", "broken").code == 1  # nothing is tried again unasked
    (place / "cure").touch()
    retried = run("lab", "run", "broken", "--retry", "--workers", 1)
    assert retried.code == 0, retried.err
    assert "0.50 ± 0.71" in retried.out


def test_a_table_that_lacks_something_keeps_no_other_from_being_written(run, place):
    result = run("lab", "run", "astray", "--workers", 1)
    assert result.code == 2
    assert sorted(path.name for path in (place / "results/astray/smoke").iterdir()) == [
        "table1.csv",
        "table1.md",
    ]
    assert result.err.count("table2: quantity='palce' was not measured by Walk seed 0") == 1
    assert "place" in result.err
    assert "--fresh" in result.err


def test_everything_can_be_run_afresh(run):
    run("lab", "run", "toy", "--only", "table1", "--seeds", 1, "--workers", 1)
    result = run("lab", "run", "toy", "--only", "table1", "--seeds", 1, "--workers", 1, "--fresh")
    assert "0 of 3 trials done" in result.err
    assert "3 of 3 trials done" in result.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("run", "tyo"), "there is no recipe 'tyo'; did you mean toy?"),
        (("run", "zzz"), "there is no recipe 'zzz'; there is toy, broken, astray, unreadable."),
        (("run", "toy", "--only", "tabel1"), "no table or figure 'tabel1' in toy; did you mean table1?"),
        (("table", "toy", "fig"), "no table or figure 'fig' in toy; did you mean figure1?"),
        (("run", "toy", "--scale", "huge"), "'huge' is not one of 'smoke', 'laptop', 'paper'"),
        (("run", "toy", "--device", "cuda:77"), "--device: 'cuda:77' cannot be used here"),
        (("run", "toy", "--executor", "cloud"), "'cloud' is not one of 'local', 'slurm', 'ray'"),
        (("run", "toy", "--executor-arg", "partition=gpu"), "the local executor has no setting 'partition'"),
        (("table", "toy"), "store='varshift-lab' holds no results yet"),
        (("figure", "toy"), "store='varshift-lab' holds no results yet"),
        (("status",), "store='varshift-lab' holds no results yet"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(refused, words, said):
    assert said in refused("lab", *words)


def test_a_store_of_a_newer_version_is_refused(refused, run, place):
    import sqlite3

    from varshift.store import Store

    Store(place / "varshift-lab").close()
    with sqlite3.connect(place / "varshift-lab" / "lab.sqlite") as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    result = run("lab", "status")
    assert result.code == 2
    assert result.err.count("\n") == 1
    assert "of a newer varshift" in result.err


def test_a_folder_for_results_that_cannot_be_made_is_told(run, place):
    (place / "results").write_text("in the way")
    result = run("lab", "run", "toy", "--only", "table1", "--seeds", 1, "--workers", 1)
    assert result.code == 2
    assert "table1: --out: the folder" in result.err
    assert "Traceback" not in result.err


def test_one_broken_recipe_hides_none_of_the_others(run):
    result = run("lab", "list")
    assert result.code == 2
    assert "On walks (Nobody, 2020)" in result.out
    assert "table1, figure1, claims" in result.out
    assert result.out.split("\n")[1].split()[-3:] == ["9", "9", "9"]
    assert "recipe 'unreadable' cannot be used: ImportError: no module of that name" in result.err


def test_status_of_one_recipe(run):
    run("lab", "run", "toy", "--only", "table1", "--seeds", 1, "--workers", 1)
    assert run("lab", "status", "toy").code == 0
    unknown = run("lab", "status", "tyo")
    assert unknown.code == 2
    assert "did you mean toy?" in unknown.err


def test_an_interrupt_is_said_to_lose_nothing(run, monkeypatch):
    import varshift.runner

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(varshift.runner, "run", interrupted)
    result = run("lab", "run", "toy")
    assert result.code == 130
    assert "0 of 9 trials are done; the same command goes on." in result.err


def test_what_trials_record_can_be_written_for_tensorboard(run, place):
    pytest.importorskip("tensorboard")
    # TensorBoard imports what warns; as on the command line, the workers do not mind.
    result = run("lab", "run", "toy", "--only", "table1", "--seeds", 1, "--workers", 1, "--tensorboard")
    assert result.code == 0, result.err
    events = list((place / "varshift-lab" / "tensorboard").rglob("events.out.*"))
    assert len(events) == 3
    assert b"place" in events[0].read_bytes()


def test_a_missing_tensorboard_is_named_with_the_command(refused, monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert 'pip install "varshift[tensorboard]"' in refused("lab", "run", "toy", "--tensorboard")


def test_help_answers_without_torch():
    code = (
        "import sys\n"
        "from varshift.cli import main\n"
        "for words in (['lab', '--help'], ['lab', 'run', '--help'], ['--help']):\n"
        "    assert main(words) == 0\n"
        "assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "lab" in done.stdout
    assert "Train the papers' networks" in done.stdout


def test_a_verb_of_the_lab_may_be_left_out_for_its_help(run):
    result = run("lab")
    for verb in ("list", "run", "status", "table", "figure"):
        assert verb in result.out + result.err


def test_workers_are_given_devices_in_turn(monkeypatch):
    import varshift_lab.verbs._places as places_module
    from varshift_lab.verbs._places import places

    monkeypatch.setattr(places_module, "cores", lambda: 8)
    monkeypatch.setattr(places_module, "_all_gpus", lambda: ["cuda:0", "cuda:1"])
    assert places("local", "cpu", None, 100) == ["cpu"] * 8
    assert places("local", "cpu", None, 3) == ["cpu"] * 3
    assert places("local", "cuda", None, 100) == ["cuda:0", "cuda:1"]
    assert places("local", "cuda", 3, 100) == ["cuda:0", "cuda:1", "cuda:0"]
    assert places("local", "cuda:1", 4, 2) == ["cuda:1"] * 2
    assert places("slurm", "cuda", None, 100) == ["cuda"]
    assert places("slurm", "cuda", 5, 100) == ["cuda"] * 5
