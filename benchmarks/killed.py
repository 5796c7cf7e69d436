"""A real sweep, killed at random, against the same sweep left alone: are their tables equal?

Run by itself: ``python benchmarks/killed.py [--kills N]``. What is killed (SIGKILL) is the sweep, a worker,
or all processes at once; the sweep is then started again, as its user would. The tables must agree in every
figure that is not a time.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _timing import table, write

SWEEP = ("lab", "run", "variance-shift", "--scale", "smoke", "--only", "table3", "--workers", "2")
LONGEST = 6.0  # seconds between two kills
TIMES = ("seconds", "date")


def start(folder: Path) -> subprocess.Popen[bytes]:
    """The sweep in a session of its own, with its store and tables in a folder."""
    command = [str(Path(sys.executable).with_name("varshift")), *SWEEP]
    command += ["--store", str(folder / "store"), "--out", str(folder / "out")]
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def workers_of(sweep: int) -> list[int]:
    """Processes that the sweep has started to work; another keeps the books of multiprocessing."""
    listed = subprocess.run(
        ["pgrep", "-P", str(sweep), "-f", "spawn_main"], capture_output=True, text=True, check=False
    )
    return [int(line) for line in listed.stdout.split()]


def figures(folder: Path) -> list[dict[str, str]]:
    """The rows of the table, but for times."""
    with (folder / "out" / "table3.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [{key: row[key] for key in row if not any(part in key for part in TIMES)} for row in rows]


def killed(folder: Path, kills: int) -> dict[str, int]:
    """Runs the sweep to its end and counts what was killed on the way."""
    draw = random.Random(0)
    count: dict[str, int] = dict.fromkeys(("sweep", "worker", "all"), 0)
    running = start(folder)
    while sum(count.values()) < kills:
        time.sleep(draw.uniform(0.0, LONGEST))
        if running.poll() is not None:
            raise SystemExit(f"the sweep ended after {sum(count.values())} kills with {running.returncode}")
        victim, workers = draw.choice(list(count)), workers_of(running.pid)
        if victim == "worker" and workers:
            os.kill(draw.choice(workers), signal.SIGKILL)
        elif victim != "worker":
            os.killpg(running.pid, signal.SIGKILL) if victim == "all" else running.kill()
            running.wait()
            running = start(folder)
        else:
            continue  # it has none yet
        count[victim] += 1
        print(f"killed: {victim}", flush=True)
    if running.wait():
        raise SystemExit(f"the sweep ended with {running.returncode}: see {folder / 'log'}")
    return count


def main() -> int:
    """Runs both sweeps, compares their tables and writes down what was killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        calm, other = Path(name) / "calm", Path(name) / "killed"
        for folder in (calm, other):
            folder.mkdir()
        if start(calm).wait():
            raise SystemExit((calm / "log").read_text()[-2000:])
        count = killed(other, arguments.kills)
        mine, undisturbed = figures(other), figures(calm)
    header = ["sweep killed", "worker killed", "all killed", "rows", "figures that differ"]
    differ = sum(a[key] != b[key] for a, b in zip(mine, undisturbed, strict=True) for key in a)
    row = [*map(str, count.values()), str(len(mine)), str(differ)]
    text = (
        "`varshift " + " ".join(SWEEP) + "`, killed at random by SIGKILL and started again each time "
        "(`python benchmarks/killed.py`), against the same sweep left alone: all of the table but times."
    )
    write("killed", "A sweep that is killed", f"{text}\n\n{table(header, [row])}")
    return int(differ > 0)


if __name__ == "__main__":
    sys.exit(main())
