"""A worker runs one trial after the other, and records how each of them ended."""

import json

import pytest
from toy_trials import Fault, Walk, walks

from varshift.runner import Assignment, work
from varshift.runner import _work as work_module
from varshift.store import Owner, Queue, StoreError, read_log
from varshift.trials import Workbench


def test_all_trials_are_run_and_measured(sweeps):
    trials = walks(3)
    assert work(sweeps.add(trials)) == 3
    results = sweeps.store.results(trials)
    assert {trial: dict(results[trial].measurements) for trial in trials} == {
        trial: trial.run(Workbench()) for trial in trials
    }
    provenance = results[trials[0]].provenance
    names = "device torch varshift python threads precision compiled date"
    assert set(provenance) == set(names.split())
    assert work(sweeps.assignment()) == 0


def test_the_log_tells_all_that_happened(sweeps):
    work(sweeps.add([Walk(0, steps=2)]))
    (key,) = sweeps.keys
    assert sweeps.events(key) == ["started", "step", "step", "finished"]
    last = list(read_log(sweeps.store.run_folder(key) / "log.jsonl"))[-1]
    assert last["measurements"] == Walk(0, steps=2).run(Workbench())


@pytest.mark.parametrize(("keep", "there"), [(False, False), (True, True)])
def test_checkpoints_go_when_they_are_no_longer_needed(sweeps, keep, there):
    sweeps.add([Walk(0)])
    work(sweeps.assignment(keep=keep))
    assert (sweeps.store.run_folder(sweeps.keys[0]) / "checkpoints" / "walk.json").exists() == there


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("error", "ValueError: no such thing"),
        ("trial", "the loss is not finite in epoch 3 at learning rate 10: lower it."),
        ("nan", "the measurement 'place' is nan: the training has diverged."),
        ("full", "no space left on device"),
        ("object", "the measurement 'place' is a object, not a number or a list of them."),
        ("nothing", "a trial must return its measurements by name; it returned none."),
    ],
)
def test_a_failure_is_recorded_and_the_others_go_on(sweeps, how, reason):
    work(sweeps.add([Walk(0), Fault(0, how), Walk(1)]))
    assert sweeps.states() == ["done", "failed", "done"]
    failed = sweeps.runs()[1]
    assert failed.reason == reason
    last = list(read_log(sweeps.store.run_folder(failed.key) / "log.jsonl"))[-1]
    assert (last["event"], last["reason"]) == ("failed", reason)
    assert "Traceback" in last["traceback"]


def test_a_failed_trial_can_be_tried_again(sweeps, tmp_path):
    cure = tmp_path / "cure"
    trial = Fault(0, "error", str(cure))
    work(sweeps.add([trial]))
    assert work(sweeps.assignment()) == 0
    cure.touch()
    assert sweeps.store.retry(sweeps.keys) == 1
    assert work(sweeps.assignment()) == 1
    assert sweeps.states() == ["done"]
    assert sweeps.store.results([trial])[trial].measurements == {"place": 0.0}


def test_an_interrupted_trial_waits_again_and_its_worker_stops(sweeps):
    with pytest.raises(KeyboardInterrupt):
        work(sweeps.add([Walk(0), Fault(0, "interrupt"), Walk(1)]))
    assert sweeps.states() == ["done", "queued", "queued"]
    assert sweeps.events(sweeps.keys[1]) == ["started", "interrupted"]


def test_a_trial_of_code_that_is_no_more_fails_alone(sweeps):
    assignment = sweeps.add([Walk(0), Walk(1)])
    with sweeps.store.transaction() as connection:
        gone = json.dumps({"type": "toy_trials:Gone", "seed": 0})
        connection.execute("UPDATE runs SET trial = ? WHERE key = ?", (gone, sweeps.keys[0]))
    work(assignment)
    assert sweeps.states() == ["failed", "done"]
    assert "toy_trials:Gone" in sweeps.runs()[0].reason


def test_a_worker_that_has_lost_its_trial_counts_for_nothing(sweeps, monkeypatch):
    """As after a pause so long that it was given up for dead."""
    assignment = sweeps.add([Walk(0, steps=3), Walk(1)])
    begin = work_module._Recorder.begin

    def begin_and_lose(recorder, assignment):
        begin(recorder, assignment)
        if recorder._run.key == sweeps.keys[0] and recorder._run.attempt == 1:
            with sweeps.store.transaction() as connection:
                connection.execute("UPDATE runs SET claim = 'another' WHERE key = ?", (recorder._run.key,))

    monkeypatch.setattr(work_module._Recorder, "begin", begin_and_lose)
    assert work(assignment) == 1
    assert sweeps.states() == ["running", "done"]
    assert "finished" not in sweeps.events(sweeps.keys[0])


def test_a_disk_that_is_full_stops_the_worker_and_keeps_what_was_done(sweeps):
    sweeps.add(walks(2))
    queue = Queue(sweeps.store, Owner.here())
    run = queue.claim()
    queue.finish(run, {"place": 1.0}, {}, 1.0)
    store = sweeps.store
    import varshift.store._store as store_module

    connect = store_module.connect

    def full(file):
        connection = connect(file)
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")
        return connection

    store_module.connect = full
    try:
        trial = Walk(7, steps=1000)
        keys = store.add("toy", "smoke", {"long": [trial]})
        with pytest.raises(StoreError, match="the disk is full"):
            work(Assignment(store.folder, tuple(keys)))
    finally:
        store_module.connect = connect
    assert [one.state for one in store.runs(sweeps.keys)] == ["done", "queued"]
    assert store.runs(keys)[0].state in ("queued", "running")


def test_a_worker_whose_gpu_is_lost_makes_room_for_a_fresh_one(sweeps, monkeypatch):
    monkeypatch.setattr(work_module, "is_lasting", lambda error: True)
    assert work(sweeps.add([Fault(0, "error"), Walk(0)])) == 1
    assert sweeps.states() == ["failed", "queued"]
    assert work(sweeps.assignment()) == 1
    assert sweeps.states() == ["failed", "done"]


def test_only_errors_that_last_end_a_worker():
    import torch

    assert work_module.is_lasting(RuntimeError("CUDA error: device-side assert triggered"))
    assert not work_module.is_lasting(RuntimeError("shapes do not fit"))
    assert not work_module.is_lasting(torch.cuda.OutOfMemoryError("CUDA out of memory"))
    assert not work_module.is_lasting(ValueError("CUDA error"))


def test_numbers_of_other_libraries_are_stored_as_plain_ones(sweeps):
    import numpy
    import torch

    from varshift.runner._plain import plain_measurements

    found = plain_measurements(
        {"a": numpy.float32(0.5), "b": torch.tensor([1.0, 2.0]), "c": (1, numpy.int64(2)), "d": True}
    )
    assert json.loads(json.dumps(found)) == {"a": 0.5, "b": [1.0, 2.0], "c": [1, 2], "d": True}
