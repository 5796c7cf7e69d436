"""Runs the trainings of a comparison through a store: in this process, or by workers."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from varshift.comparison._judge import LEVEL
from varshift.comparison._setup import Setup
from varshift.comparison._trial import ComparisonTrial
from varshift.comparison._variants import REFERENCE
from varshift.comparison._verdicts import Criterion, Figures, Looks, hopeless, judge_pairs
from varshift.model import Guard
from varshift.probe import Progress
from varshift.runner import Assignment, executor, run, work
from varshift.store import Owner, Queue, Store
from varshift.store import Progress as StoreProgress

FIRST_LOOK = 3  # seeds before a variant may be stopped
_POLL_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Place:
    """Where and how trainings run.

    Attributes:
        store: Folder of the store.
        device: Device of the trainings.
        workers: Number of worker processes; 0 for this process.
        executor: Who starts workers, see `varshift.runner.executor_names`.
        options: Settings of the executor.
        retry: Whether trainings that failed are tried again.
        fresh: Whether everything is run again.
        progress: Told of the trainings that are done.
    """

    store: Path
    device: str = "cpu"
    workers: int = 0
    executor: str = "local"
    options: Mapping[str, Any] = field(default_factory=dict)
    retry: bool = False
    fresh: bool = False
    progress: Progress | None = None


@dataclass
class Results:
    """What came of the trainings.

    Attributes:
        figures: For each variant, what was measured by seed.
        failures: For each variant, the reason for each seed without a result.
        stopped: For each variant that was stopped, the sentence that says why.
    """

    figures: dict[str, dict[int, Mapping[str, float]]] = field(default_factory=dict)
    failures: dict[str, dict[int, str]] = field(default_factory=dict)
    stopped: dict[str, str] = field(default_factory=dict)


def looks_of(seeds: int, early_stop: bool) -> Looks:
    """When variants may be stopped."""
    return Looks(tuple(range(FIRST_LOOK, seeds)) if early_stop else (), seeds)


def carry_out(
    setup: Setup, seeds: Sequence[int], place: Place, criterion: Criterion, looks: Looks
) -> Results:
    """Trains all variants with all seeds, those that are settled to be worse with fewer.

    Raises:
        StoreError: If the store cannot be used.
        RunnerError: If workers cannot be started.
        KeyboardInterrupt: If it is interrupted; the same call goes on.
    """
    trials = {
        (name, seed): ComparisonTrial(seed, setup.identity, name, setup.definition(name))
        for seed in seeds
        for name in setup.variants
    }
    results = Results()
    with Store(place.store) as store, Guard() as guard:
        guard.keep(setup.loader, setup.judged)
        studies = {name: [trials[name, seed] for seed in seeds] for name in setup.variants}
        keys = store.add("compare", setup.identity, studies)
        if place.fresh:
            store.discard(keys)
        if place.retry:
            store.retry(keys)

        def tell(stage: str) -> None:
            if place.progress is not None:
                state = store.progress(keys)
                place.progress(stage, state.total - state.open, state.total)

        done = 0
        for count in (*looks.early, len(seeds)):
            running = [name for name in setup.variants if name not in results.stopped]
            wanted = [trials[name, seed] for seed in seeds[done:count] for name in running]
            _run([trial.key for trial in wanted], setup, store, place, tell)
            _gather(results, [trials[name, seed] for seed in seeds[:count] for name in running], store)
            done = count
            if count < len(seeds):
                _stop(results, list(setup.variants), criterion, looks)
    return results


def _run(keys: list[str], setup: Setup, store: Store, place: Place, tell: Callable[[str], None]) -> None:
    """Has some trainings run until none of them is left."""
    waiting = store.progress(keys).open
    if not waiting:
        return
    if place.workers:
        # As bytes: multiprocessing would share the memory of tensors, which fails for two of one storage.
        materials = pickle.dumps(setup)
        assignment = Assignment(store.folder.absolute(), tuple(keys), place.device, materials=materials)
        assignments = [assignment] * min(place.workers, waiting)
        run(store, executor(place.executor, place.options), assignments, lambda state, _: tell(_stage(state)))
        return
    queue = Queue(store, Owner.here(), keys)
    queue.reclaim()
    queue.forgive()
    while store.progress(keys).open:
        for key in keys:
            queued = next((entry for entry in store.runs([key]) if entry.state == "queued"), None)
            if queued is None:
                continue
            tell(queued.title)
            # Threads stay as the caller has set them.
            work(Assignment(store.folder, (key,), place.device, threads=None, materials=setup))
        if store.progress(keys).open:  # another process that shares the store has the rest
            time.sleep(_POLL_SECONDS)
            queue.reclaim()


def _stage(state: StoreProgress) -> str:
    """What workers do now."""
    if not state.running:
        return "starting workers" if state.open else "done"
    first, *more = state.running
    return f"{first} and {len(more)} more" if more else first


def _gather(results: Results, trials: Sequence[ComparisonTrial], store: Store) -> None:
    """Reads what some trainings have come to."""
    by_key = {run.key: run for run in store.runs(trial.key for trial in trials)}
    measured = {trial.key: result for trial, result in store.results(trials).items()}
    for name in dict.fromkeys(trial.variant for trial in trials):
        own = [trial for trial in trials if trial.variant == name]
        results.figures[name] = {
            trial.seed: measured[trial.key].measurements for trial in own if trial.key in measured
        }
        results.failures[name] = {
            trial.seed: by_key[trial.key].reason for trial in own if trial.key not in measured
        }


def _stop(results: Results, names: list[str], criterion: Criterion, looks: Looks) -> None:
    """Stops the variants whose verdict is settled: worse than another one."""
    figures: dict[str, Figures] = dict(results.figures)
    pairs = judge_pairs(figures, names, criterion, looks, final=True)
    for name, pair in hopeless(pairs, REFERENCE).items():
        results.stopped.setdefault(
            name,
            f"after {pair.count} seeds it was settled that {pair.better} is better "
            f"(p = {max(pair.p, 1e-12):.2g} < {LEVEL}).",
        )
