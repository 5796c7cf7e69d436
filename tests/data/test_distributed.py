"""Two real processes share out the data and pool their histories."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from varshift.data import ActiveBias, ActiveBiasSampler, DistributedRandomReshuffleSampler, PredictionHistory

WORKER = Path(__file__).parent / "workers" / "bias_rank.py"


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(rank), "2", str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    output = [process.communicate(timeout=180)[0] for process in processes]
    assert all(process.returncode == 0 for process in processes), "\n".join(output)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


def test_shares_of_the_group_are_disjoint_and_new_in_each_epoch(ranks):
    assert [result["rank"] for result in ranks] == [(2, 0), (2, 1)]
    for rank, result in enumerate(ranks):
        sampler = DistributedRandomReshuffleSampler(11, 2, rank, seed=3)
        assert result["orders"] == [list(sampler) for _ in range(3)]
    for first, second in zip(*(result["orders"] for result in ranks), strict=True):
        assert len(first) == len(second) == 6
        assert set(first + second) == set(range(11))
    assert len({tuple(sorted(order)) for order in ranks[0]["orders"]}) == 3


def test_pooled_histories_are_those_of_one_process_that_saw_all(ranks):
    history = PredictionHistory(10)
    for step in range(6):
        for rank, result in enumerate(ranks):
            if (step, rank) != (5, 1):
                history.update(*result[f"update{step}"])
        if step in (1, 4):
            for result in ranks:
                torch.testing.assert_close(result[f"state{step}"], history.state_dict())
    for result in ranks:
        torch.testing.assert_close(result["state"], history.state_dict(), rtol=1e-12, atol=1e-15)
        assert result["epoch"] == history.seen // 10


def test_processes_hold_the_same_bits(ranks):
    first, second = ranks
    for key in ("count", "mean", "squares"):
        assert torch.equal(first["state"][key], second["state"][key])
    assert torch.equal(first["weights"], second["weights"])


def test_until_then_a_process_reads_its_own(ranks):
    for result in ranks:
        ids = result["update0"][0]
        assert torch.equal(result["own_count"], torch.bincount(ids, minlength=10))
        assert result["seen"] == 2 * len(ids)  # what both will have seen, as far as one can tell
        assert result["synchronised"] == [False, True, True]
        assert "bias was not synchronised" in result["error"]


def test_draws_are_shares_of_one_sequence(ranks):
    bias = ActiveBias(10, burn_in=0)
    bias.history.load_state_dict(ranks[0]["state"])
    alone = ActiveBiasSampler(bias, num_samples=25)
    for epoch in range(2):
        whole = list(alone)
        first, second = (result["drawn"][epoch] for result in ranks)
        assert [index for pair in zip(first, second, strict=True) for index in pair] == whole + whole[:1]


def test_histories_per_class_are_pooled(ranks):
    for result in ranks:
        state = result["classes"]
        assert state["count"].tolist() == [1, 1, 2, 0]
        want = torch.tensor([[0.1, 0.2], [0.1, 0.2], [0.4, 0.4], [0.0, 0.0]], dtype=torch.float64)
        torch.testing.assert_close(state["mean"], want)
        torch.testing.assert_close(state["squares"][2], torch.tensor([0.02, 0.0], dtype=torch.float64))
        assert state["seen"] == 4


def test_a_group_of_one_keeps_to_itself(ranks):
    assert [result["alone"].tolist() for result in ranks] == [[1, 0], [0, 1]]
