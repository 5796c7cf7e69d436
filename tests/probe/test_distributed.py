"""Two real processes share their statistics."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

WORKER = Path(__file__).parent / "workers" / "recalibrate_rank.py"


@pytest.fixture
def run_ranks(tmp_path):
    def run(scenario, world=2):
        folder = tmp_path / f"{scenario}{world}"
        folder.mkdir()
        processes = [
            subprocess.Popen(
                [sys.executable, str(WORKER), str(rank), str(world), scenario, str(folder)],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(world)
        ]
        output = [process.communicate(timeout=180)[0] for process in processes]
        assert all(process.returncode == 0 for process in processes), "\n".join(output)
        return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(world)]

    return run


@pytest.mark.parametrize("scenario", ["plain", "ddp"])
def test_every_rank_gets_the_statistics_of_the_union(run_ranks, scenario):
    first, second = run_ranks(scenario)
    (alone,) = run_ranks(scenario="plain" if scenario == "ddp" else "alone", world=1)
    assert not first["error"]
    assert not second["error"]
    assert (first["batches"], second["batches"]) == (4, 3)
    for key, value in alone["state"].items():
        assert torch.equal(first["state"][key], second["state"][key]), key
        torch.testing.assert_close(first["state"][key], value, rtol=1e-6, atol=1e-6)


def test_a_tolerance_does_not_hang_on_unequal_loaders(run_ranks):
    first, second = run_ranks("tolerance")
    (alone,) = run_ranks("alone", world=1)
    assert (first["batches"], second["batches"]) == (4, 3)
    for key, value in alone["state"].items():
        assert torch.equal(first["state"][key], second["state"][key]), key
        torch.testing.assert_close(first["state"][key], value, rtol=1e-6, atol=1e-6)


def test_a_loose_tolerance_stops_all_ranks_together(run_ranks):
    first, second = run_ranks("loose")
    assert not first["error"]
    assert not second["error"]
    for key, value in first["state"].items():
        assert torch.equal(value, second["state"][key]), key


def test_moving_averages_agree_between_ranks(run_ranks):
    first, second = run_ranks("ema")
    for key, value in first["state"].items():
        assert torch.equal(value, second["state"][key]), key


def test_a_failure_on_one_rank_changes_none(run_ranks):
    first, second = run_ranks("fails")
    assert "failed on process 1" in first["error"]
    assert second["error"].startswith("DataError: batch 1")
    assert first["unchanged"]
    assert second["unchanged"]


def test_the_effect_is_one_over_all_ranks(run_ranks):
    first, second = run_ranks("effect")
    assert (first["batches"], second["batches"]) == (6, 1)
    assert first["effect"] == second["effect"]
    assert first["effect"][3] == 16  # two batches of the first process, none of the second
    for key, value in first["state"].items():
        assert torch.equal(value, second["state"][key]), key


def test_a_loss_that_fails_on_one_rank_stops_all_of_them(run_ranks):
    first, second = run_ranks("effect fails")
    assert "no loss here" in second["error"]
    assert "failed on process 1" in first["error"]
    assert first["unchanged"]
    assert second["unchanged"]
