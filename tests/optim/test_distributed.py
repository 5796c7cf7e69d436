"""Two real processes train as one would with the batches of both."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

WORKER = Path(__file__).parent / "workers" / "train_rank.py"
SAME = {
    "preconditioner": "preconditioner",
    "preconditioner-accumulate": "preconditioner",
    "clipping": "clipping",
    "rescaling": "rescaling",
    "sharded-preconditioner-clipping": "preconditioner-clipping",
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    ranks = [(0, 2, SAME), (1, 2, SAME), (0, 1, dict.fromkeys(SAME.values()))]
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(rank), str(world), str(folder), *scenarios],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank, world, scenarios in ranks
    ]
    output = [process.communicate(timeout=180)[0] for process in processes]
    assert all(process.returncode == 0 for process in processes), "\n".join(output)
    return [torch.load(folder / f"rank{rank}of{world}.pt", weights_only=True) for rank, world, _ in ranks]


@pytest.mark.parametrize("together", SAME)
def test_two_processes_train_as_one(results, together):
    first, second, expected = results[0][together], results[1][together], results[2][SAME[together]]
    for name, value in expected["state"].items():
        assert torch.equal(first["state"][name], second["state"][name]), name
        torch.testing.assert_close(first["state"][name], value, rtol=1e-9, atol=1e-11)
    for name, layer in expected.get("statistics", {}).items():
        for key, value in layer.items():
            assert torch.equal(first["statistics"][name][key], second["statistics"][name][key])
            torch.testing.assert_close(first["statistics"][name][key], value, rtol=1e-10, atol=1e-12)
