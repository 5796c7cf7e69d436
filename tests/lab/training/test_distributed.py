"""Two real processes, started by torchrun, train one network."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from varshift.trials import Workbench
from varshift_lab.training import fit
from varshift_lab.training._random import own_random_state, seed_masks

WORKERS = Path(__file__).parent / "workers"


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """Weights and what was told, of both processes, by scenario."""
    folder = tmp_path_factory.mktemp("ranks")
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*start, str(WORKERS / "train_rank.py"), str(folder)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return {
        scenario: [
            (
                torch.load(folder / f"{scenario}{rank}.pt", weights_only=True),
                json.loads((folder / f"{scenario}{rank}.json").read_text()),
            )
            for rank in range(2)
        ]
        for scenario in ("plain", "noisy", "diverged")
    }


@pytest.fixture
def worker(monkeypatch):
    monkeypatch.syspath_prepend(str(WORKERS))
    import train_rank

    train_rank.SEEN.clear()
    return train_rank


def test_two_processes_train_as_one(ranks, worker, images):
    """Without norms and noise the mean of two half batches' gradients is that of the batch."""
    (one, first), (two, second) = ranks["plain"]
    alone = worker.network("plain")
    history = fit(
        alone, images, worker.SETTINGS["plain"], treatment=worker.Biased(False), workbench=Workbench()
    )
    for name, value in alone.state_dict().items():
        assert torch.equal(one[name], two[name]), name
        torch.testing.assert_close(one[name], value, rtol=1e-4, atol=1e-6)
    assert first["loss"] == second["loss"] == pytest.approx(history.loss, rel=1e-5)
    # the same samples in every step as a process alone, half of them each, and all of them in an epoch
    steps = list(zip(first["seen"], second["seen"], strict=True))
    assert {(len(mine), len(other)) for mine, other in steps} == {(8, 8)}
    assert [sorted(mine + other) for mine, other in steps] == [sorted(batch) for batch in worker.SEEN]
    for epoch in range(3):
        seen = [place for mine, other in steps[6 * epoch : 6 * epoch + 6] for place in mine + other]
        assert sorted(seen) == list(range(96))


def test_norms_noise_and_memories_agree_in_the_end(ranks):
    (one, first), (two, second) = ranks["noisy"]
    for name, value in one.items():
        assert torch.equal(value, two[name]), name
    assert first["loss"] == second["loss"]
    assert first["shift"] == second["shift"]
    assert first["shift"][0][0] > 1.2


@pytest.mark.parametrize("scenario", ["plain", "noisy"])
def test_both_go_on_from_a_checkpoint_to_the_same_weights(ranks, scenario):
    assert [told["resumed alike"] for _, told in ranks[scenario]] == [True, True]


def test_one_of_them_tells(ranks):
    (_, first), (_, second) = ranks["noisy"]
    assert first["events"] == ["epoch"] * 3 + ["probe"]
    assert second["events"] == []


def test_both_raise_when_training_diverged(ranks):
    for _, told in ranks["diverged"]:
        assert "diverged in epoch" in told["error"]


def test_every_process_and_epoch_has_masks_of_its_own():
    drawn = set()
    with own_random_state("cpu"):
        for seed, epoch, rank in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (1, 1, 1)):
            seed_masks(seed, epoch, rank)
            drawn.add(float(torch.rand(())))
    assert len(drawn) == 5
