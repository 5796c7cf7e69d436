"""``varshift compare``: the table, the JSON, the exit status, and what is said of wrong options."""

import json
import textwrap

import pytest

BASE = ("compare", "nets:build", "--data", "nets:loader", "--epochs", "1", "--seeds", "2")

OWN = """
    from torch import nn

    def wider(network):
        return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))

    def broken(network):
        with __import__("torch").no_grad():
            network.first.weight.fill_(float("nan"))

    def broken_once(network):
        if __import__("torch").initial_seed() == 1:
            broken(network)

    def train(network, loader, epochs):
        print("training", epochs)
        return {"score": 1.0}
"""


def test_a_comparison_is_printed_written_and_goes_on(run, place):
    (place / "own.py").write_text(textwrap.dedent(OWN))
    words = (*BASE, "--variants", "no-noise,wide=own:wider", "--store", "runs", "--json", "table.json")
    done = run(*words)
    assert done.code == 0, done.err
    assert "nets:build: 3 variants over 2 seeds, by loss in eval() on the training data" in done.out
    assert "as-is and wide" in done.out
    content = json.loads((place / "table.json").read_text())
    assert content["schema"] == "varshift.comparison/1"
    assert [row["name"] for row in content["variants"]] == ["as-is", "no-noise", "wide"]
    again = run(*words[:-1], "again.json")
    assert json.loads((place / "again.json").read_text()) == content  # times too: nothing was trained
    assert again.code == 0


def test_json_alone_goes_to_standard_output_whatever_the_training_prints(run, place):
    (place / "own.py").write_text(textwrap.dedent(OWN))
    done = run(
        *BASE, "--variants", "wide=own:wider", "--train", "own:train", "--measure", "score", "--json", "-"
    )
    assert done.code == 0, done.err
    assert json.loads(done.out)["measure"] == "score"
    assert "training 1" in done.err


def test_trainings_that_fail_make_the_exit_status_1(run, place):
    (place / "own.py").write_text(textwrap.dedent(OWN))
    done = run(*BASE, "--variants", "broken=own:broken")
    assert done.code == 1
    assert "broken: failed: no result with seed 0, 1: the loss is nan in epoch 1" in done.out
    done = run(*BASE, "--variants", "broken=own:broken_once")
    assert done.code == 1
    assert "broken: no result with seed 1: the loss is nan in epoch 1" in done.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--variants", "no-such"), "there is none named 'no-such'"),
        (("--variants", "no-noise,no-noise"), "comes twice"),
        (("--variants", "x="), "must be a name, or NAME=MODULE:FUNCTION"),
        (("--json", "nowhere/table.json"), "there is no folder"),
        (("--device", "nowhere"), "--device"),
        (("--train", "nets:number"), "not a function"),
    ],
)
def test_wrong_options_are_one_line(refused, words, message):
    assert message in refused(*BASE, *words)
