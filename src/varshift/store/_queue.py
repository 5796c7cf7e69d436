"""The queue as a worker sees it: claim a trial, give signs of life, and say how it ended."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Mapping
from typing import Any

from varshift.store._errors import ClaimLostError, explained
from varshift.store._log import Log
from varshift.store._owner import Owner, is_gone
from varshift.store._records import Claimed
from varshift.store._store import FINISHED, Store

# Without a sign of life for so long, a worker that cannot be asked counts as dead. Clocks of machines that
# share a store may differ by much less than this.
LEASE_SECONDS = 120.0
# A process that lives but has been silent for so long was stopped, or has given up without saying so.
SILENCE_SECONDS = 900.0
# Workers that die under a trial, time after time and without any event between, die of it. So many times that
# a sound trial outlives somebody who kills workers at random, even before it comes to its first event.
MOST_CRASHES = 25


class Queue:
    """One worker's access to the queue.

    Every change of a running trial is made on condition that the worker still holds it, in one transaction,
    so that a worker that was given up for dead and comes back changes nothing.

    Args:
        store: The store.
        owner: Who claims.
        keys: Trials that may be claimed; all by default.
    """

    def __init__(self, store: Store, owner: Owner, keys: Iterable[str] | None = None) -> None:
        self.store = store
        self.owner = owner
        self._keys = None if keys is None else json.dumps(list(keys))

    def claim(self) -> Claimed | None:
        """Claims the trial that was queued first, for this worker alone; None when none waits."""
        self.reclaim()
        with self.store.transaction() as connection:
            row = connection.execute(
                "SELECT key, trial, title, attempts FROM runs WHERE state = 'queued' "
                "AND (?1 IS NULL OR key IN (SELECT value FROM json_each(?1))) ORDER BY rowid LIMIT 1",
                (self._keys,),
            ).fetchone()
            if row is None:
                return None
            attempt = row["attempts"] + 1
            claim = f"{self.owner.token}-{attempt}"
            now = time.time()
            connection.execute(
                "UPDATE runs SET state = 'running', attempts = ?, claim = ?, machine = ?, process = ?, "
                "born = ?, alive = ?, started = ?, finished = NULL, reason = NULL WHERE key = ?",
                (
                    attempt,
                    claim,
                    self.owner.machine,
                    self.owner.process,
                    self.owner.born,
                    now,
                    now,
                    row["key"],
                ),
            )
        return Claimed(row["key"], json.loads(row["trial"]), row["title"], claim, attempt)

    def reclaim(self) -> int:
        """Puts trials of dead workers back into the queue and returns how many.

        One that workers of this machine die of, time after time and without coming any further, has failed.
        """
        now = time.time()
        rows = self.store.select("SELECT * FROM runs WHERE state = 'running'")
        dead = {row["key"]: row for row in rows if _is_dead(row, self.owner.machine, now)}
        if not dead:
            return 0
        changed = []
        with self.store.transaction() as connection:
            for key, row in dead.items():
                # A worker elsewhere that is no longer heard of need not have died of its trial.
                crashes = row["crashes"] + is_gone(row["machine"], row["process"], row["born"])
                failed = crashes >= MOST_CRASHES
                reason = (
                    f"its worker died {crashes} times without coming any further: killed, out of memory, or "
                    "a crash in compiled code."
                )
                done = connection.execute(
                    "UPDATE runs SET state = ?, crashes = ?, reason = ?, claim = NULL, "
                    "seconds = seconds + max(alive - started, 0) "
                    "WHERE key = ? AND claim = ? AND state = 'running'",
                    (
                        "failed" if failed else "queued",
                        crashes,
                        reason if failed else None,
                        key,
                        row["claim"],
                    ),
                )
                changed += [key] if done.rowcount else []
        for key in changed:
            self._log(key, "abandoned", claim=dead[key]["claim"], process=dead[key]["process"])
        return len(changed)

    def forgive(self) -> None:
        """Forgets how often workers died of the trials that wait: somebody has started the sweep again."""
        with self.store.transaction() as connection:
            connection.execute(
                "UPDATE runs SET crashes = 0 WHERE state = 'queued' "
                "AND (?1 IS NULL OR key IN (SELECT value FROM json_each(?1)))",
                (self._keys,),
            )

    def beat(self, run: Claimed, *, progressed: bool = False) -> None:
        """A sign of life; `progressed` says that the trial has come further.

        Raises:
            ClaimLostError: If the trial has been given to another worker.
        """
        self._change(
            run, "alive = ?, crashes = CASE WHEN ? THEN 0 ELSE crashes END", time.time(), int(progressed)
        )

    def finish(
        self, run: Claimed, measurements: Mapping[str, Any], provenance: Mapping[str, Any], seconds: float
    ) -> None:
        """Stores what a trial measured; only then is it done.

        Args:
            run: The trial.
            measurements: What it measured.
            provenance: What it ran on.
            seconds: How long this attempt took.

        Raises:
            ClaimLostError: If the trial has been given to another worker.
        """
        total = seconds + self._seconds_before(run)
        # The log comes first: what it holds survives the loss of the database.
        self._log(
            run.key,
            FINISHED,
            claim=run.claim,
            attempt=run.attempt,
            seconds=total,
            measurements=measurements,
            provenance=provenance,
        )
        self._change(
            run,
            "state = 'done', claim = NULL, finished = ?, seconds = ?, measurements = ?, provenance = ?",
            time.time(),
            total,
            json.dumps(measurements, allow_nan=False),
            json.dumps(provenance),
        )

    def fail(self, run: Claimed, reason: str, trace: str = "") -> None:
        """Records that a trial came to no result, and why.

        Raises:
            ClaimLostError: If the trial has been given to another worker.
        """
        now = time.time()
        self._change(
            run,
            "state = 'failed', claim = NULL, finished = ?, seconds = seconds + ? - started, reason = ?",
            now,
            now,
            reason,
        )
        self._log(run.key, "failed", claim=run.claim, attempt=run.attempt, reason=reason, traceback=trace)

    def release(self, run: Claimed) -> None:
        """Puts a trial back into the queue, as when its worker is interrupted.

        Raises:
            ClaimLostError: If it has been given to another worker.
        """
        self._change(run, "state = 'queued', claim = NULL, seconds = seconds + ? - started", time.time())
        self._log(run.key, "interrupted", claim=run.claim, attempt=run.attempt)

    def _change(self, run: Claimed, change: str, *values: Any) -> None:
        with self.store.transaction() as connection:
            done = connection.execute(
                f"UPDATE runs SET {change} WHERE key = ? AND claim = ? AND state = 'running'",
                (*values, run.key, run.claim),
            )
            if done.rowcount != 1:
                raise ClaimLostError(f"{run.title} has been given to another worker.")

    def _seconds_before(self, run: Claimed) -> float:
        rows = self.store.select("SELECT seconds FROM runs WHERE key = ?", run.key)
        return rows[0]["seconds"] if rows else 0.0

    def _log(self, key: str, event: str, **fields: Any) -> None:
        with explained(self.store.folder), Log(self.store.run_folder(key) / "log.jsonl") as log:
            log.append(event, sync=True, **fields)


def _is_dead(row: sqlite3.Row, machine: str, now: float) -> bool:
    silent = now - row["alive"]
    if row["machine"] == machine:
        return silent > SILENCE_SECONDS or is_gone(row["machine"], row["process"], row["born"])
    return silent > LEASE_SECONDS
