"""What the ranks of a data-parallel training see, in two real processes, and the rule VS404 on it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import varshift as vs
from varshift.evidence import Evidence, History, RankFacts, RankNorm
from varshift.monitor import _ranks
from varshift.rules import run_rules

WORKER = Path(__file__).parent / "workers" / "watch_rank.py"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(rank), str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    output = [process.communicate(timeout=180)[0] for process in processes]
    assert all(process.returncode == 0 for process in processes), "\n".join(output)
    return [json.loads((folder / f"rank{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]


def codes(result):
    return [code for code, _, _ in result["findings"]]


@pytest.mark.parametrize(("scenario", "broadcast"), [("uneven", True), ("own buffers", False)])
def test_ranks_with_other_data_are_found_on_the_first_rank(results, scenario, broadcast):
    first, second = (rank[scenario] for rank in results)
    assert codes(first) == ["VS404"]
    assert codes(second) == []
    assert second["ranks"] is None
    facts = first["ranks"]
    assert (facts["ranks"], facts["synchronised"], facts["broadcast"]) == (2, False, broadcast)
    assert facts["readings"] >= 8
    # Inputs one standard deviation apart in each of six channels: the linear layer keeps half of that on
    # either side of the middle, up to its own directions.
    offset = facts["norms"]["1"]["mean_offset"]
    assert 0.2 < offset < 1.5
    assert facts["norms"]["1"]["mean_consistency"] > 10


def test_the_offset_is_that_of_the_batches_whoever_broadcasts(results):
    with_it, without = (results[0][name]["ranks"]["norms"]["1"] for name in ("uneven", "own buffers"))
    assert with_it["mean_offset"] == pytest.approx(without["mean_offset"], rel=0.1)


@pytest.mark.parametrize("scenario", ["even", "even, own buffers"])
def test_ranks_with_data_alike_are_silent(results, scenario):
    first, second = (rank[scenario] for rank in results)
    assert codes(first) == codes(second) == []
    assert first["ranks"]["readings"] >= 8
    for norm in first["ranks"]["norms"].values():
        assert norm["mean_consistency"] < 3
        assert norm["variance_consistency"] < 3


def test_pieces_of_a_batch_are_compared_too(results):
    assert "VS404" in codes(results[0]["pieces"])


@pytest.mark.parametrize("scenario", ["first rank only", "second rank only"])
def test_a_rank_that_does_not_watch_holds_up_nobody(results, scenario):
    for rank in results:
        assert rank[scenario]["ranks"] is None
        assert codes(rank[scenario]) == []
        assert not rank[scenario].get("limits")


def test_weights_and_statistics_are_the_same_to_the_bit_with_and_without_a_watch(results):
    for rank in results:
        assert rank["uneven"]["weights"] == rank["uneven, not watched"]["weights"]


def test_a_store_that_fails_ends_the_comparison_and_nothing_else(monkeypatch):
    calls = []

    def fail(self):
        calls.append(self)
        raise RuntimeError("the store is gone")

    monkeypatch.setattr(_ranks.Ranks, "_connect", fail)
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with vs.watch(net, optimizer=optimizer, strict=True) as watch:
        for _ in range(12):
            optimizer.zero_grad()
            net(torch.randn(16, 4)).square().mean().backward()
            optimizer.step()
            watch.step()
    assert len(calls) == 1
    assert watch.report.history.steps == 12
    assert not watch.report.limits


def test_ranks_that_train_networks_of_their_own_are_not_compared(results):
    assert results[0]["other weights"]["ranks"] is None


def facts(*, offset=0.0, ratio=1.0, mean=9.0, variance=9.0, readings=12, synchronised=False):
    norm = RankNorm("bn", ratio, offset, mean, variance)
    return Evidence(history=History(ranks=RankFacts(4, readings, synchronised, True, {"bn": norm})))


@pytest.mark.parametrize(
    ("evidence", "fires"),
    [
        (facts(offset=0.2), True),
        (facts(ratio=1.2), True),
        (facts(offset=0.05, ratio=1.05), False),
        (facts(offset=0.2, mean=2.0), False),
        (facts(offset=0.2, ratio=1.02, mean=2.0), False),
        (facts(ratio=1.2, variance=2.0), False),
        (facts(offset=1.0, readings=5), False),
        (facts(offset=1.0, synchronised=True), False),
        (Evidence(history=History()), False),
    ],
)
def test_differences_count_beyond_chance_and_beyond_a_size(evidence, fires):
    found = run_rules(evidence, ["VS404"])
    assert [(one.code, one.severity) for one in found] == ([("VS404", "warning")] if fires else [])
