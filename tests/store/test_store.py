"""Trials wait, are claimed by one worker each, and end once."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from toy_trials import Walk, walks

import varshift.store._queue as queue_module
from varshift.store import ClaimLostError, Owner, Queue, Store, StoreError, read_log

SUPPORT = Path(__file__).parents[1] / "support"


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "store") as opened:
        yield opened


def queue_of(store, **changes):
    return Queue(store, replace(Owner.here(), **changes))


def add(store, trials, study="table1"):
    return store.add("toy", "smoke", {study: trials})


def events(store, key):
    return [event["event"] for event in read_log(store.run_folder(key) / "log.jsonl")]


def test_trials_are_claimed_in_their_order_each_once(store):
    keys = add(store, walks(3))
    queue = queue_of(store)
    assert [queue.claim().key for _ in range(3)] == keys
    assert queue.claim() is None


def test_a_trial_that_two_studies_want_is_there_once(store):
    keys = store.add("toy", "smoke", {"table1": walks(3), "figure1": walks(2)})
    assert keys == [walk.key for walk in walks(3)]
    assert store.progress(keys).total == 3
    assert add(store, walks(3)) == keys
    assert store.progress(keys).total == 3


def test_a_worker_may_be_kept_to_some_trials(store):
    add(store, walks(3))
    wanted = walks(3)[1].key
    queue = Queue(store, Owner.here(), [wanted])
    assert queue.claim().key == wanted
    assert queue.claim() is None


def test_a_result_comes_back_with_what_it_ran_on_and_all_its_time(store):
    trial = Walk(0)
    add(store, [trial])
    queue = queue_of(store)
    queue.release(queue.claim())
    run = queue.claim()
    assert run.attempt == 2
    queue.finish(run, {"place": 0.1, "path": [1.5]}, {"device": "x"}, 2.0)
    result = store.results([trial])[trial]
    assert result.measurements == {"place": 0.1, "path": [1.5]}
    assert result.provenance == {"device": "x"}
    assert result.seconds == pytest.approx(2.0, abs=0.5)  # the first attempt took a moment
    assert store.progress([trial.key]).counts["done"] == 1


def test_only_the_holder_of_a_claim_can_end_a_trial(store):
    trial = Walk(0)
    add(store, [trial])
    first, second = queue_of(store), queue_of(store, token="other")
    lost = first.claim()
    first.release(lost)
    held = second.claim()
    for late in (
        lambda: first.finish(lost, {"place": 1.0}, {}, 1.0),
        lambda: first.fail(lost, "late"),
        lambda: first.release(lost),
        lambda: first.beat(lost),
    ):
        with pytest.raises(ClaimLostError, match="another worker"):
            late()
    second.finish(held, {"place": 2.0}, {}, 1.0)
    with pytest.raises(ClaimLostError):
        second.finish(held, {"place": 3.0}, {}, 1.0)
    assert store.results([trial])[trial].measurements == {"place": 2.0}


def test_many_workers_never_hold_the_same_trial(store):
    add(store, walks(40))
    claimed, failures = [], []

    def worker():
        with Store(store.folder) as own:
            queue = queue_of(own)
            try:
                while (run := queue.claim()) is not None:
                    claimed.append(run.key)
                    queue.finish(run, {"place": 0.0}, {}, 0.0)
            except Exception as error:
                failures.append(error)

    threads = [threading.Thread(target=worker) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert sorted(claimed) == sorted(walk.key for walk in walks(40))


CLAIM_AND_WAIT = """
import sys, time
from pathlib import Path
from varshift.store import Owner, Queue, Store
print(Queue(Store(Path(sys.argv[1])), Owner.here()).claim().key, flush=True)
time.sleep(60)
"""


def test_the_trial_of_a_killed_worker_goes_back_at_once(store):
    keys = add(store, walks(1))
    path = os.pathsep.join([str(SUPPORT), *sys.path])
    worker = subprocess.Popen(
        [sys.executable, "-c", CLAIM_AND_WAIT, str(store.folder)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    with worker:
        assert worker.stdout.readline().strip() == keys[0]
        queue = queue_of(store)
        assert queue.claim() is None  # it lives
        worker.send_signal(signal.SIGKILL)
    run = queue.claim()
    assert run.key == keys[0]
    assert run.attempt == 2


def test_a_process_that_took_over_the_number_of_a_dead_one_is_not_it(store):
    if not Owner.here().born:
        pytest.skip("this system does not tell when a process began")
    add(store, walks(1))
    queue_of(store, born="1").claim()
    assert queue_of(store).claim() is not None


@pytest.mark.parametrize(("silent", "free"), [(0.0, False), (1000.0, True)])
def test_a_worker_on_another_machine_is_dead_when_its_lease_is_over(store, silent, free):
    (key,) = add(store, walks(1))
    queue_of(store, machine="elsewhere", process=1).claim()
    with store.transaction() as connection:
        connection.execute("UPDATE runs SET alive = alive - ? WHERE key = ?", (silent, key))
    assert (queue_of(store).claim() is not None) == free


def test_a_living_worker_of_this_machine_keeps_its_claim_through_a_pause(store):
    (key,) = add(store, walks(1))
    queue_of(store).claim()
    with store.transaction() as connection:
        connection.execute("UPDATE runs SET alive = alive - ?", (queue_module.LEASE_SECONDS + 1,))
    assert queue_of(store).claim() is None
    with store.transaction() as connection:
        connection.execute("UPDATE runs SET alive = alive - ?", (queue_module.SILENCE_SECONDS,))
    assert queue_of(store).claim().key == key


def dead(store):
    """Owner of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return Queue(store, replace(Owner.here(), process=process.pid, born="1"))


def test_a_trial_that_workers_die_of_time_after_time_has_failed(store):
    keys = add(store, walks(1))
    for _ in range(queue_module.MOST_CRASHES):
        assert dead(store).claim() is not None
    assert queue_of(store).claim() is None
    (run,) = store.runs(keys)
    assert run.state == "failed"
    assert f"died {queue_module.MOST_CRASHES} times" in run.reason
    assert store.retry(keys) == 1
    assert queue_of(store).claim() is not None


def test_a_trial_that_comes_further_between_deaths_goes_on(store):
    add(store, walks(1))
    for _ in range(2 * queue_module.MOST_CRASHES):
        queue = dead(store)
        queue.beat(queue.claim(), progressed=True)
    assert queue_of(store).claim() is not None


def test_whoever_begins_a_sweep_anew_forgives_earlier_deaths(store):
    keys = add(store, walks(1))
    for _ in range(2 * queue_module.MOST_CRASHES):
        assert dead(store).claim() is not None
        queue = Queue(store, Owner.here(), keys)
        queue.reclaim()
        queue.forgive()
    assert queue_of(store).claim() is not None


def test_a_failure_is_kept_with_its_reason_and_can_be_tried_again(store):
    keys = add(store, walks(2))
    queue = queue_of(store)
    queue.fail(queue.claim(), "the loss is not finite.", "Traceback: ...")
    queue.finish(queue.claim(), {"place": 0.0}, {}, 0.0)
    failed, done = store.runs(keys)
    assert (failed.state, failed.reason) == ("failed", "the loss is not finite.")
    assert done.state == "done"
    assert queue.claim() is None
    assert store.retry(keys) == 1
    assert [run.state for run in store.runs(keys)] == ["queued", "done"]
    assert queue.claim().key == keys[0]
    assert events(store, keys[0]) == ["failed", "retried"]


def test_the_time_left_is_judged_by_the_trials_that_are_done(store):
    keys = add(store, walks(4))
    assert store.progress(keys).remaining_seconds is None
    queue = queue_of(store)
    queue.finish(queue.claim(), {"place": 0.0}, {}, 10.0)
    assert store.progress(keys).remaining_seconds == pytest.approx(30.0)
    queue.claim()
    with store.transaction() as connection:
        connection.execute("UPDATE runs SET started = alive - 4 WHERE state = 'running'")
    assert store.progress(keys).remaining_seconds == pytest.approx(26.0)


def test_results_outlive_the_database(store):
    trials = walks(2)
    keys = add(store, trials)
    queue = queue_of(store)
    queue.finish(queue.claim(), {"place": 0.25}, {"device": "x"}, 3.0)
    store.close()
    for file in store.folder.glob("lab.sqlite*"):
        file.unlink()
    with Store(store.folder) as anew:
        add(anew, trials)
        assert [run.state for run in anew.runs(keys)] == ["done", "queued"]
        result = anew.results(trials)[trials[0]]
        assert result.measurements == {"place": 0.25}
        assert (result.provenance, result.seconds) == ({"device": "x"}, 3.0)


def test_discarded_results_are_gone_for_good(store):
    trials = walks(2)
    keys = add(store, trials)
    queue = queue_of(store)
    queue.finish(queue.claim(), {"place": 0.25}, {}, 3.0)
    running = queue.claim()
    assert store.discard(keys) == 1
    assert [run.state for run in store.runs(keys)] == ["queued", "running"]
    assert store.runs(keys)[0].seconds == 0
    queue.release(running)
    store.close()
    for file in store.folder.glob("lab.sqlite*"):
        file.unlink()
    with Store(store.folder) as anew:
        add(anew, trials)
        assert anew.results(trials) == {}


def test_what_a_study_wants_follows_the_recipe(store):
    add(store, walks(3))
    add(store, walks(3)[1:])
    ((recipe, scale, keys),) = store.wanted()
    assert (recipe, scale) == ("toy", "smoke")
    assert sorted(keys) == sorted(walk.key for walk in walks(3)[1:])


def refused(folder, **options):
    with pytest.raises(StoreError) as caught:
        Store(folder, **options)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    return str(caught.value)


def test_a_store_of_a_newer_version_is_left_alone(store):
    with store.transaction() as connection:
        connection.execute("PRAGMA user_version = 99")
    store.close()
    assert "version 99, of a newer varshift" in refused(store.folder)


def test_an_older_store_is_brought_up_to_date(store, monkeypatch):
    import varshift.store._schema as schema

    keys = add(store, walks(1))
    store.close()
    more = (*schema.MIGRATIONS, ("ALTER TABLE runs ADD COLUMN remark TEXT",))
    monkeypatch.setattr(schema, "MIGRATIONS", more)
    monkeypatch.setattr(schema, "VERSION", 2)
    with Store(store.folder) as newer:
        assert newer.select("PRAGMA user_version")[0][0] == 2
        assert newer.select("SELECT key, remark FROM runs")[0]["key"] == keys[0]


def test_the_database_of_another_program_is_left_alone(tmp_path):
    with sqlite3.connect(tmp_path / "lab.sqlite") as other:
        other.execute("CREATE TABLE runs (x)")
    other.close()
    before = (tmp_path / "lab.sqlite").read_bytes()
    assert "another program's" in refused(tmp_path)
    assert (tmp_path / "lab.sqlite").read_bytes() == before


@pytest.mark.parametrize("damage", [b"what is this? " * 400, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_damaged_database_is_named_with_the_remedy(store, damage):
    add(store, walks(1))
    store.close()
    for file in store.folder.glob("lab.sqlite-*"):
        file.unlink()
    (store.folder / "lab.sqlite").write_bytes(damage)
    assert "move lab.sqlite away" in refused(store.folder)


def test_damage_that_shows_later_is_named_too(store):
    add(store, walks(200))
    store.close()
    file = store.folder / "lab.sqlite"
    data = bytearray(file.read_bytes())
    data[4096:] = b"\x5a" * (len(data) - 4096)
    file.write_bytes(data)
    with Store(store.folder) as opened, pytest.raises(StoreError, match="damaged"):
        opened.progress([walk.key for walk in walks(200)])


def test_a_folder_that_is_none_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot be used" in refused(tmp_path / "file")
    assert "holds no results yet" in refused(tmp_path / "nowhere", create=False)
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "permission denied" in refused(tmp_path / "locked" / "store")


def test_a_full_disk_is_said_in_one_line_and_loses_nothing(store):
    keys = add(store, walks(1))
    queue = queue_of(store)
    run = queue.claim()
    with store.transaction() as connection:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
    store.select(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreError, match="the disk is full") as caught:
        queue.finish(run, {"path": [0.1] * 100_000}, {}, 1.0)
    assert "\n" not in str(caught.value)
    store.select("PRAGMA max_page_count = 1000000")
    assert store.runs(keys)[0].state == "running"
    queue.finish(run, {"path": [0.1] * 100_000}, {}, 1.0)
    assert store.runs(keys)[0].state == "done"


def test_on_a_network_file_system_no_memory_is_shared(tmp_path, monkeypatch):
    import varshift.store._schema as schema

    with Store(tmp_path) as store:
        assert store.select("PRAGMA journal_mode")[0][0] == "wal"
    monkeypatch.setattr(schema, "on_network", lambda folder: True)
    with Store(tmp_path) as store:
        assert store.select("PRAGMA journal_mode")[0][0] == "delete"
        add(store, walks(1))
        assert queue_of(store).claim() is not None


def test_two_processes_may_make_a_store_at_once(tmp_path):
    code = "import sys, pathlib, varshift.store; varshift.store.Store(pathlib.Path(sys.argv[1]))"
    makers = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "store")], stderr=subprocess.PIPE)
        for _ in range(4)
    ]
    for maker in makers:
        _, error = maker.communicate()
        assert maker.returncode == 0, error.decode()


def test_waiting_for_a_busy_store_is_not_an_error(store):
    add(store, walks(1))
    with Store(store.folder) as other:
        held = threading.Event()

        def hold():
            with other.transaction():
                held.set()
                time.sleep(0.3)

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait()
        assert queue_of(store).claim() is not None
        thread.join()


def test_trials_are_stored_as_plain_data(store):
    add(store, [Walk(3, drift=0.5)])
    run = queue_of(store).claim()
    assert run.data == {"type": "toy_trials:Walk", "seed": 3, "steps": 5, "drift": 0.5, "pause": 0.0}
    assert json.loads(json.dumps(run.data)) == run.data
