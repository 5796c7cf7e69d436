"""The demo from the command line to the report file."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import jsonschema
import pytest
import torch

from varshift._threads import one_thread
from varshift.cli import main
from varshift.report import report_schema


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """A demo of 20 layers: exit code, output, report file and picture."""
    folder = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "-m", "varshift.cli", "demo", "--depth", "20", "--out", "report.json"]
    done = subprocess.run(
        [*command, "--svg", "check.svg"],
        cwd=folder,
        env={**os.environ, "COLUMNS": "80", "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads((folder / "report.json").read_text()), (folder / "check.svg").read_text()


def test_the_sick_network_is_found_sick(played):
    _, report, _ = played
    jsonschema.validate(report, report_schema())
    errors = [finding for finding in report["findings"] if finding["severity"] == "error"]
    sites = {f"stages.{stage}.{block}.before_norm" for stage in range(3) for block in range(3)}
    assert {
        site["id"].split(":")[0]
        for finding in errors
        if finding["code"] == "VS101"
        for site in finding["sites"]
    } == sites
    assert report["model"]["norms"] == 19
    assert (report["data"]["batches"], report["data"]["samples"]) == (21, 1344)
    steps = {step["cause"]: step for step in report["gap"]["steps"]}
    assert steps["variance-shift"]["delta"] > 2 * steps["variance-shift"]["stderr"]


def test_the_story_is_told_to_its_end(played):
    output, report, _ = played
    order = [
        "1348 handwritten digits",
        "The sick network: varshift.check(sick, loader)",
        "The healthy network: varshift.check(healthy, loader)",
        "The cure: varshift.fix(sick, report, loader=loader)",
        "VS101 noise-feeds-norm: recalibrate [safe]  19 places",
        "and 11 more places",
        "Gone: VS101 noise-feeds-norm",
        "The cured network: cured.after",
        "What happened",
        "The report on the sick network as trained is in report.json.",
    ]
    positions = [output.index(text) for text in order]
    assert positions == sorted(positions)
    row = next(line for line in output.splitlines() if line.startswith("sick, training digits"))
    assert f"{report['gap']['states']['train']:.3f}" in row
    assert all(len(line) <= 80 for line in output[positions[-2] :].splitlines())


def test_the_picture_is_one_of_the_check(played):
    picture = played[2]
    assert picture.startswith("<svg")
    assert "VS101" in picture


def test_bad_options_are_refused_before_anything_is_trained(capsys, tmp_path):
    assert main(["demo", "--depth", "15", "--out", str(tmp_path / "report.json")]) == 2
    assert "depth=15 must be 6 n + 2" in capsys.readouterr().err
    assert main(["demo", "--out", str(tmp_path / "nowhere" / "report.json")]) == 2
    assert "there is no folder" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_verb_is_listed_without_importing_torch():
    code = "import sys, varshift_lab.verbs; assert not {'torch', 'sklearn', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_number_of_threads_is_put_back():
    threads = torch.get_num_threads()
    seen = []

    def fail() -> None:
        with one_thread():
            seen.append(torch.get_num_threads())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert seen == [1]
    assert torch.get_num_threads() == threads
