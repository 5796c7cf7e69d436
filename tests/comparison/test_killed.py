"""A comparison that is killed goes on where it was, and comes to the same table."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from long_runs import LONG

import varshift as vs
from varshift.store import Store, read_log

SUPPORT = Path(__file__).parents[1] / "support"


def start(store, out, workers):
    path = os.pathsep.join([str(SUPPORT), *sys.path])
    return subprocess.Popen(
        [sys.executable, str(SUPPORT / "tiny_comparison.py"), str(store), str(out), str(workers)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )


def events(store):
    """All events of all trainings, by training."""
    return {
        folder.name: [event["event"] for event in read_log(folder / "log.jsonl")]
        for folder in (store / "runs").glob("*")
    }


def begin_until(store, out, workers, epochs, number):
    """Runs until this number of epochs is done, and sends a signal to all of its processes."""
    with start(store, out, workers) as program:
        deadline = time.monotonic() + 300
        while sum(names.count("epoch") for names in events(store).values()) < epochs:
            assert time.monotonic() < deadline, "it never came to that"
            assert program.poll() is None, program.stderr.read()
            time.sleep(0.02)
        os.killpg(program.pid, number)
        program.communicate(timeout=60)


def without_times(path):
    table = vs.Comparison.from_json(path)
    return dataclasses.replace(
        table, variants=tuple(dataclasses.replace(row, seconds=None) for row in table.variants)
    )


# It takes minutes: `make battery` runs it.
@pytest.mark.skipif(not LONG, reason="a part of the battery, which takes long")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_table_is_the_same_after_kills(workers, tmp_path):
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    with start(calm, tmp_path / "calm.json", workers) as program:
        _, error = program.communicate(timeout=300)
    assert program.returncode == 0, error
    begin_until(killed, tmp_path / "no.json", workers, 3, signal.SIGKILL)
    begin_until(killed, tmp_path / "no.json", workers, 14, signal.SIGINT)
    with start(killed, tmp_path / "killed.json", workers) as program:
        _, error = program.communicate(timeout=300)
    assert program.returncode == 0, error
    assert not (tmp_path / "no.json").exists()
    assert without_times(tmp_path / "killed.json") == without_times(tmp_path / "calm.json")
    logs = events(killed)
    assert len(logs) == 8
    assert all(names.count("finished") == 1 for names in logs.values())
    # What was interrupted went on after its last whole epoch.
    again = [names for names in logs.values() if names.count("started") > 1]
    assert again
    assert all(names.count("epoch") <= 4 + 1 for names in again)
    assert sum(names.count("epoch") for names in logs.values()) <= 8 * 4 + 2 * max(workers, 1)
    with Store(killed) as store:
        assert {run.state for run in store.runs(logs)} == {"done"}
