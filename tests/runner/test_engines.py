"""Workers as jobs of SLURM and tasks of Ray, on the local clusters of both."""

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from toy_trials import Fault, RestingWalk, walks

from varshift.runner import RunnerError, executor, run
from varshift.store import Store, read_log

SUPPORT = Path(__file__).parents[1] / "support"
needs_submitit = pytest.mark.skipif(not importlib.util.find_spec("submitit"), reason="needs submitit")
needs_ray = pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="needs ray")

SWEEP = """
import sys
from pathlib import Path
from toy_trials import Fault, walks
from varshift.runner import Assignment, executor, run
from varshift.store import Store
from varshift_lab.verbs._follow import Follower

if __name__ == "__main__":
    folder, engine, workers, pause, *options = sys.argv[1:]
    folder = Path(folder)
    with Store(folder) as store, Follower(engine) as follow:
        keys = store.add("toy", "smoke", {"all": [*walks(6, pause=float(pause)), Fault(0, "error")]})
        settings = {name: float(value) for name, value in (option.split("=") for option in options)}
        told = [Assignment(folder, tuple(keys))] * int(workers)
        run(store, executor(engine, settings), told, follow)
"""


def start(folder, *words):
    # Ray needs short paths for its sockets, and a process of its own for its threads and warnings.
    return subprocess.Popen(
        [sys.executable, "-c", SWEEP, str(folder), *map(str, words)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(SUPPORT), *sys.path])},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def states(folder):
    with Store(folder, create=False) as store:
        return sorted(run.state for run in store.runs(store.wanted()[0][2]))


@needs_submitit
def test_slurm_jobs_run_all_trials_and_survive_a_failing_one(sweeps):
    assignment = sweeps.add([*walks(4), Fault(0, "error")])
    engine = executor("slurm", {"cluster": "local", "timeout_min": 5, "partition": "gpu"})
    progress = run(sweeps.store, engine, [assignment] * 2, lambda *_: None)
    assert progress.counts == {"queued": 0, "running": 0, "done": 4, "failed": 1}
    assert list((sweeps.store.folder / "jobs").glob("*_log.out"))


@needs_submitit
def test_slurm_jobs_put_their_trials_back_when_the_sweep_is_interrupted(sweeps):
    assignment = sweeps.add(walks(2, steps=200, pause=0.05))
    engine = executor("slurm", {"cluster": "local", "timeout_min": 5})

    def follow(progress, workers):
        if progress.counts["running"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(sweeps.store, engine, [assignment] * 2, follow)
    assert sweeps.states() == ["queued", "queued"]
    assert {run.attempts for run in sweeps.runs()} == {1}


@needs_submitit
def test_a_job_whose_time_is_up_is_followed_by_another(sweeps):
    """Submitit announces the end of a job by a signal; the trial is no failure."""
    walk = RestingWalk(0, steps=40)
    assignment = sweeps.add([walk])
    engine = executor("slurm", {"cluster": "local", "timeout_min": 5})
    announced = []

    def follow(progress, workers):
        steps = sweeps.events(sweeps.keys[0]).count("step")
        if steps > 2 and not announced:
            announced.append(steps)
            (row,) = sweeps.store.select("SELECT process FROM runs WHERE state = 'running'")
            os.kill(row["process"], signal.SIGUSR2)

    progress = run(sweeps.store, engine, [assignment], follow)
    assert announced
    assert progress.counts["done"] == 1
    events = sweeps.events(sweeps.keys[0])
    assert events.count("started") == 2
    assert events.count("interrupted") == 1
    log = read_log(sweeps.store.run_folder(sweeps.keys[0]) / "log.jsonl")
    steps = [event["step"] for event in log if event["event"] == "step"]
    assert steps == sorted(set(steps))  # none was walked twice
    assert len(steps) == 40
    assert len(sweeps.store.results([walk])[walk].measurements["path"]) == 40


@needs_submitit
def test_without_a_cluster_slurm_says_so_in_one_line(sweeps, monkeypatch):
    monkeypatch.setenv("PATH", "")
    engine = executor("slurm")
    with pytest.raises(RunnerError, match="SLURM cannot be used") as caught:
        engine.crew([sweeps.add(walks(1))])
    assert "\n" not in str(caught.value)


@needs_submitit
def test_an_unknown_setting_of_slurm_is_refused(sweeps):
    engine = executor("slurm", {"cluster": "local", "colour": "red"})
    with pytest.raises(RunnerError, match="colour") as caught:
        engine.crew([sweeps.add(walks(1))])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "module"), [("slurm", "submitit"), ("ray", "ray")])
def test_a_missing_package_is_named_with_the_command(name, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(RunnerError, match=rf'pip install "varshift\[{name}\]"'):
        executor(name)


@needs_ray
def test_ray_tasks_share_the_trials_and_put_them_back_when_interrupted(tmp_path):
    with start(tmp_path / "store", "ray", 2, 0.3, "num_cpus=0.5", "num_gpus=0.0") as sweep:
        for line in sweep.stdout:
            if "2 of 7" in line or "3 of 7" in line:
                os.kill(sweep.pid, signal.SIGINT)
                break
        said, _ = sweep.communicate(timeout=60)
        assert sweep.returncode != 0, said
    left = states(tmp_path / "store")
    assert "running" not in left
    assert "queued" in left
    # Whoever started a trial, any other engine goes on with it.
    with start(tmp_path / "store", "local", 2, 0.3) as again:
        said, _ = again.communicate(timeout=60)
        assert again.returncode == 0, said
    assert states(tmp_path / "store") == ["done"] * 6 + ["failed"]
