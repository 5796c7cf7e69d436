"""The store as a whole: which trials are wanted, how far they are, and what they measured."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from varshift.store._errors import StoreError, explained
from varshift.store._log import Log, read_log
from varshift.store._records import Progress, Result, Run, State
from varshift.store._schema import connect
from varshift.trials import Trial, encode

FILE = "lab.sqlite"
# Events of the log that hold a result, and that say to forget it.
FINISHED, DISCARDED = "finished", "discarded"
CHECKPOINTS = "checkpoints"


class Store:
    """A folder with a queue of trials that any number of processes may work on at once.

    ``lab.sqlite`` knows where each trial stands and holds the results; ``runs/<key>/log.jsonl`` holds all
    that happened to a trial, results included, and ``runs/<key>/checkpoints`` what it needs to go on.

    A connection belongs to one process; threads each open their own.

    Args:
        folder: The folder.
        create: Make it if need be.

    Raises:
        StoreError: If it cannot be used, here and in all methods.
    """

    def __init__(self, folder: Path, *, create: bool = True) -> None:
        self.folder = Path(folder)
        with explained(self.folder):
            if create:
                (self.folder / "runs").mkdir(parents=True, exist_ok=True)
            elif not (self.folder / FILE).is_file():
                raise StoreError(
                    f"store={str(folder)!r} holds no results yet: `varshift lab run RECIPE` makes it."
                )
            self._connection = connect(self.folder / FILE)

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """The connection, inside a transaction that no other process can come between."""
        with explained(self.folder):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                # A full disk has rolled it back already.
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def select(self, query: str, *values: Any) -> list[sqlite3.Row]:
        """Rows of a query."""
        with explained(self.folder):
            return self._connection.execute(query, values).fetchall()

    def checkpoints(self, key: str) -> Path:
        """Where a trial keeps what it needs to go on."""
        return self.run_folder(key) / CHECKPOINTS

    def run_folder(self, key: str) -> Path:
        """Where a trial keeps all that is its own."""
        return self.folder / "runs" / key

    def add(self, recipe: str, scale: str, studies: Mapping[str, Sequence[Trial]]) -> list[str]:
        """Queues what some tables, figures or claims of a recipe want, unless the store has it already.

        Results of a lost ``lab.sqlite`` that the logs still hold are taken from there.

        Returns:
            The keys of all trials, each once, in their order.
        """
        trials = {trial.key: trial for wanted in studies.values() for trial in wanted}
        known = set(self._known(trials))
        saved = {key: found for key in trials if key not in known and (found := self._saved(key)) is not None}
        with self.transaction() as connection:
            connection.executemany(
                "INSERT OR IGNORE INTO runs (key, trial, title) VALUES (?, ?, ?)",
                [(key, json.dumps(encode(trial)), trial.title) for key, trial in trials.items()],
            )
            connection.executemany(
                "UPDATE runs SET state = 'done', attempts = ?, finished = ?, seconds = ?, measurements = ?, "
                "provenance = ? WHERE key = ? AND state = 'queued' AND attempts = 0",
                [(*values, key) for key, values in saved.items()],
            )
            for study, wanted in studies.items():
                connection.execute(
                    "DELETE FROM wants WHERE recipe = ? AND scale = ? AND study = ?", (recipe, scale, study)
                )
                connection.executemany(
                    "INSERT OR IGNORE INTO wants (recipe, scale, study, key) VALUES (?, ?, ?, ?)",
                    [(recipe, scale, study, trial.key) for trial in wanted],
                )
        return list(trials)

    def _known(self, keys: Iterable[str]) -> list[str]:
        query = "SELECT key FROM runs WHERE key IN (SELECT value FROM json_each(?))"
        return [row["key"] for row in self.select(query, json.dumps(list(keys)))]

    def _saved(self, key: str) -> tuple[Any, ...] | None:
        """The result that the log of a trial holds, as the columns of `add`."""
        last = None
        with explained(self.folder):
            for event in read_log(self.run_folder(key) / "log.jsonl"):
                if event.get("event") in (FINISHED, DISCARDED):
                    last = event
        if last is None or not isinstance(last.get("measurements"), dict):
            return None
        return (
            last.get("attempt", 1),
            time.time(),
            last.get("seconds", 0.0),
            json.dumps(last["measurements"]),
            json.dumps(last.get("provenance", {})),
        )

    def wanted(self) -> list[tuple[str, str, list[str]]]:
        """Recipes and scales that were ever asked for, with the keys of their trials."""
        rows = self.select("SELECT DISTINCT recipe, scale, key FROM wants ORDER BY recipe, scale")
        found: dict[tuple[str, str], list[str]] = {}
        for row in rows:
            found.setdefault((row["recipe"], row["scale"]), []).append(row["key"])
        return [(recipe, scale, keys) for (recipe, scale), keys in found.items()]

    def results(self, trials: Iterable[Trial]) -> dict[Trial, Result]:
        """What has been measured of some trials; those without a result are left out."""
        by_key = {trial.key: trial for trial in trials}
        query = (
            "SELECT key, measurements, provenance, seconds FROM runs "
            "WHERE state = 'done' AND key IN (SELECT value FROM json_each(?))"
        )
        return {
            by_key[row["key"]]: Result(
                json.loads(row["measurements"]), json.loads(row["provenance"]), row["seconds"]
            )
            for row in self.select(query, json.dumps(list(by_key)))
        }

    def runs(self, keys: Iterable[str]) -> list[Run]:
        """Where some trials stand."""
        query = (
            "SELECT key, title, state, attempts, alive, started, seconds, reason, machine FROM runs "
            "WHERE key IN (SELECT value FROM json_each(?)) ORDER BY rowid"
        )
        return [
            Run(
                row["key"],
                row["title"],
                row["state"],
                row["attempts"],
                _seconds(row),
                row["reason"] or "",
                (row["machine"] or "").partition(" ")[0],
            )
            for row in self.select(query, json.dumps(list(keys)))
        ]

    def begun_since(self, keys: Iterable[str], since: float) -> bool:
        """Whether anybody has begun one of some trials after a time in seconds since 1970."""
        query = "SELECT max(started) AS last FROM runs WHERE key IN (SELECT value FROM json_each(?))"
        last = self.select(query, json.dumps(list(keys)))[0]["last"]
        return last is not None and last >= since

    def progress(self, keys: Iterable[str]) -> Progress:
        """How many of some trials stand where, and how long the rest may take."""
        runs = self.runs(keys)
        counts: dict[State, int] = {"queued": 0, "running": 0, "done": 0, "failed": 0}
        for run in runs:
            counts[run.state] += 1
        done = [run.seconds for run in runs if run.state == "done"]
        remaining = None
        if done:
            mean = sum(done) / len(done)
            remaining = sum(
                max(mean - run.seconds, 0.0) for run in runs if run.state in ("queued", "running")
            )
        return Progress(counts, remaining, tuple(run.title for run in runs if run.state == "running"))

    def discard(self, keys: Iterable[str]) -> int:
        """Queues trials again as if they had never run, except those that run now, and returns how many."""
        with self.transaction() as connection:
            rows = connection.execute(
                "SELECT key FROM runs WHERE state <> 'running' AND attempts > 0 "
                "AND key IN (SELECT value FROM json_each(?))",
                (json.dumps(list(keys)),),
            ).fetchall()
            gone = [row["key"] for row in rows]
            connection.executemany(
                "UPDATE runs SET state = 'queued', attempts = 0, crashes = 0, seconds = 0, finished = NULL, "
                "reason = NULL, measurements = NULL, provenance = NULL WHERE key = ?",
                [(key,) for key in gone],
            )
            for key in gone:  # before anybody can claim it
                shutil.rmtree(self.checkpoints(key), ignore_errors=True)
        with explained(self.folder):
            for key in gone:
                with Log(self.run_folder(key) / "log.jsonl") as log:
                    log.append(DISCARDED)
        return len(gone)

    def retry(self, keys: Iterable[str]) -> int:
        """Queues failed trials again and returns how many; they go on from their checkpoints."""
        keys = list(keys)
        with self.transaction() as connection:
            failed = [
                row["key"]
                for row in connection.execute(
                    "SELECT key FROM runs WHERE state = 'failed' AND key IN (SELECT value FROM json_each(?))",
                    (json.dumps(keys),),
                )
            ]
            connection.executemany(
                "UPDATE runs SET state = 'queued', reason = NULL, crashes = 0 WHERE key = ?",
                [(key,) for key in failed],
            )
        with explained(self.folder):
            for key in failed:
                with Log(self.run_folder(key) / "log.jsonl") as log:
                    log.append("retried")
        return len(failed)


def _seconds(row: sqlite3.Row) -> float:
    """Time spent on a trial, the attempt that is under way included."""
    if row["state"] != "running":
        return row["seconds"]
    return row["seconds"] + max(row["alive"] - row["started"], 0.0)
