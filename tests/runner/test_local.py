"""Worker processes: they share the work, and survive each other's death."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from toy_trials import Fault, Witness, walks

from varshift.runner import Assignment, RunnerError, executor, run
from varshift.store import Progress

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs signals of POSIX")
SUPPORT = Path(__file__).parents[1] / "support"


def silent(progress, workers):
    assert isinstance(progress, Progress)


def run_locally(sweeps, trials, workers=2, follow=silent):
    assignment = sweeps.add(trials)
    return run(sweeps.store, executor("local"), [assignment] * workers, follow)


def test_workers_share_the_trials_and_never_one_of_them(sweeps, tmp_path):
    folder = tmp_path / "marks"
    folder.mkdir()
    progress = run_locally(sweeps, [Witness(seed, str(folder)) for seed in range(40)])
    assert progress.counts == {"queued": 0, "running": 0, "done": 40, "failed": 0}
    marks = [path.name.split(".") for path in folder.iterdir()]
    assert sorted(key for key, _, _ in marks) == sorted(sweeps.keys)
    assert len({process for _, process, _ in marks}) == 2


def test_a_trial_that_takes_its_worker_with_it_fails_and_the_others_go_on(sweeps, monkeypatch):
    import varshift.store._queue as queue_module

    monkeypatch.setattr(queue_module, "MOST_CRASHES", 3)
    run_locally(sweeps, [Fault(0, "crash"), *walks(3)], workers=1)
    assert sweeps.states() == ["failed", "done", "done", "done"]
    assert "times without coming any further" in sweeps.runs()[0].reason


def test_workers_that_cannot_begin_are_not_started_for_ever(sweeps, tmp_path, capfd):
    sweeps.add(walks(1))
    astray = Assignment(tmp_path / "nowhere", tuple(sweeps.keys))
    with pytest.raises(RunnerError, match="3 workers in a row ended before they could begin"):
        run(sweeps.store, executor("local"), [astray], silent)
    assert "holds no results yet" in capfd.readouterr().err
    assert sweeps.states() == ["queued"]


def test_what_another_process_runs_is_waited_for(sweeps):
    from varshift.store import Owner, Queue

    trials = walks(2)
    assignment = sweeps.add(trials)
    other = Queue(sweeps.store, Owner.here())
    held = other.claim()

    def follow(progress, workers):
        if progress.counts["done"] == 1 and progress.counts["running"] == 1:
            other.finish(held, {"place": 42.0}, {}, 0.0)

    run(sweeps.store, executor("local"), [assignment], follow)
    assert sweeps.store.results(trials)[trials[0]].measurements == {"place": 42.0}


def test_unknown_executors_and_settings_are_refused():
    with pytest.raises(RunnerError, match="must be one of local, slurm, ray"):
        executor("cloud")
    with pytest.raises(RunnerError, match="no setting 'partition'"):
        executor("local", {"partition": "gpu"})


def start(store, out):
    path = os.pathsep.join([str(SUPPORT), *sys.path])
    return subprocess.Popen(
        [sys.executable, str(SUPPORT / "toy_sweep.py"), str(store), str(out)],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )


def workers_of(process):
    """Its worker processes; another of its children keeps the books of multiprocessing."""
    found = []
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        found += [int(number) for number in task.read_text().split()]
    return [child for child in found if b"spawn_main" in command(child)]


def command(process):
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""


def wait_until(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.05)


def state(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "gone"


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
def test_an_interrupt_leaves_everything_ready_to_go_on(tmp_path):
    from varshift.store import Store

    store, out = tmp_path / "store", tmp_path / "out"
    sweep = start(store, out)
    with sweep:
        wait_until(lambda: list((store / "runs").glob("*/checkpoints/walk.json")))
        os.killpg(sweep.pid, signal.SIGINT)  # as the terminal does
        _, error = sweep.communicate(timeout=30)
    assert sweep.returncode != 0
    assert "KeyboardInterrupt" in error
    with Store(store, create=False) as opened:
        runs = opened.runs(opened.wanted()[0][2])
    assert {run.state for run in runs} <= {"queued", "done"}
    assert any(run.state == "queued" and run.attempts == 1 for run in runs)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
def test_workers_end_when_their_parent_is_killed(tmp_path):
    store, out = tmp_path / "store", tmp_path / "out"
    with start(store, out) as sweep:
        wait_until(lambda: len(list((store / "runs").glob("*/checkpoints/walk.json"))) >= 2)
        workers = workers_of(sweep.pid)
        sweep.kill()
    wait_until(lambda: all(state(worker) in ("Z", "X", "gone") for worker in workers))


def without_times(folder):
    """The files of a sweep without their columns of dates and seconds."""
    lines = (folder / "table1.csv").read_text().splitlines()
    return [line.rsplit(",", 2)[0] for line in lines], (folder / "claims.md").read_bytes()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
def test_killed_twenty_times_a_sweep_ends_with_the_same_table(tmp_path):
    import random

    from toy_sweep import sweep
    from toy_trials import toy_recipe

    sweep(tmp_path / "calm", tmp_path / "expected", toy_recipe(seeds=6, steps=16, pause=0.0))

    draw = random.Random(0)
    store, out = tmp_path / "store", tmp_path / "out"
    running, kills = None, {"sweep": 0, "worker": 0, "all": 0}
    try:
        while sum(kills.values()) < 20:  # the pauses add up to less than half of what two workers need
            if running is None or running.poll() is not None:
                assert not out.exists(), "it ended before it could be killed twenty times"
                running = start(store, out)
            wait_until(lambda process=running.pid: workers_of(process))
            time.sleep(draw.uniform(0.0, 0.8))
            victim, workers = draw.choice(list(kills)), workers_of(running.pid)
            if victim == "all":
                os.killpg(running.pid, signal.SIGKILL)
            elif victim == "sweep":
                running.kill()
            elif workers:
                os.kill(draw.choice(workers), signal.SIGKILL)
            else:
                continue
            kills[victim] += 1
            if victim != "worker":
                running.communicate()
    finally:
        if running is not None and running.poll() is None:
            running.communicate(timeout=60)
    assert all(kills.values()), kills
    with start(store, out) as last:
        _, error = last.communicate(timeout=60)
        assert last.returncode == 0, error

    assert without_times(out) == without_times(tmp_path / "expected")
    trials = len(toy_recipe(seeds=6, steps=16).trials("smoke"))
    logs = [path.read_text() for path in (store / "runs").glob("*/log.jsonl")]
    assert len(logs) == trials
    assert all('"finished"' in log for log in logs)
