"""Trials without torch, for tests of the store and the runner; importable by worker processes."""

from __future__ import annotations

import json
import os
import random
import time
from dataclasses import dataclass

from varshift.trials import Trial, TrialError
from varshift_lab.studies import Claim, Curve, Figure, Panel, PaperFigure, Recipe, Row, Series, Table


@dataclass(frozen=True)
class Walk(Trial):
    """A random walk of so many steps, with a checkpoint after each."""

    steps: int = 5
    drift: float = 0.0
    pause: float = 0.0

    def run(self, workbench):
        done, place, path = 0, 0.0, []
        checkpoint = workbench.folder / "walk.json" if workbench.folder is not None else None
        if checkpoint is not None and checkpoint.exists():
            done, place, path = json.loads(checkpoint.read_text())
        for step in range(done, self.steps):
            place += random.Random(f"{self.seed} {step}").gauss(self.drift, 1.0)
            path.append(place)
            time.sleep(self.pause)
            if checkpoint is not None:
                part = checkpoint.with_suffix(f".{os.getpid()}.part")
                part.write_text(json.dumps([step + 1, place, path]))
                part.replace(checkpoint)
            workbench.record({"event": "step", "step": step, "steps": self.steps, "place": place})
            self.told(step)
        return {"place": place, "path": path, "pflop": self.steps * 1e-9}

    def told(self, step):
        """What happens once a step is saved and told."""


@dataclass(frozen=True)
class RestingWalk(Walk):
    """A walk with a long rest behind one of its steps."""

    rest: int = 2

    def told(self, step):
        if step == self.rest:
            time.sleep(60)


@dataclass(frozen=True)
class Fault(Trial):
    """Fails in a way of its own, or not any more once a file is there."""

    how: str = "error"
    cure: str = ""

    def run(self, workbench):
        if self.cure and os.path.exists(self.cure):
            return {"place": float(self.seed)}
        if self.how == "trial":
            raise TrialError("the loss is not finite in epoch 3 at learning rate 10: lower it.")
        if self.how == "nan":
            return {"place": float("nan")}
        if self.how == "full":
            raise OSError(28, "No space left on device")
        if self.how == "crash":
            os._exit(9)
        if self.how == "interrupt":
            raise KeyboardInterrupt
        if self.how == "object":
            return {"place": object()}
        if self.how == "nothing":
            return {}
        raise ValueError("no such thing")


@dataclass(frozen=True)
class Witness(Trial):
    """Notes when it runs, in a folder that all can see, and fails if it is not alone."""

    folder: str = ""
    pause: float = 0.02

    def run(self, workbench):
        mark = os.path.join(self.folder, self.key)
        handle = os.open(mark, os.O_CREAT | os.O_EXCL)  # refuses where another worker has the same trial
        time.sleep(self.pause)
        os.close(handle)
        os.rename(mark, f"{mark}.{os.getpid()}.done")
        return {"place": float(self.seed)}


def walks(count, **fields):
    return tuple(Walk(seed, **fields) for seed in range(count))


def toy_recipe(*, seeds=3, steps=5, pause=0.0):
    """A recipe of random walks."""

    def series(drift, quantity="place", length=steps):
        return Series(walks(seeds, drift=drift, pause=pause, steps=length), quantity)

    def table(scale):
        rows = (
            Row(("still", "0"), series(0.0), PaperFigure(0.0, "with the paper's own coin")),
            Row(("drifting", "1"), series(1.0), PaperFigure(5.0)),
            Row(("falling", "-1"), series(-1.0)),
        )
        return Table("table1", "Where walks end", ("walk", "drift"), "paces", rows, note="Toy walks.")

    def figure(scale):
        along = tuple(Curve(name, (series(drift, "path"),)) for name, drift in (("still", 0.0), ("up", 1.0)))
        ends = Curve(
            "end", tuple(series(drift) for drift in (-1.0, 0.0, 1.0)), (-1.0, 0.0, 1.0), (-5.0, 0.0, 5.0)
        )
        return Figure(
            "figure1",
            "Walks",
            (
                Panel("on the way", along, "step", "place"),
                Panel("in the end", (ends,), "drift", "place", kind="points"),
            ),
        )

    def claims(scale):
        return (
            Claim("Falling ends below drifting.", series(-1.0), series(1.0), source="the laws of chance"),
            Claim("Drifting ends below falling.", series(1.0), series(-1.0)),
        )

    return Recipe(
        "toy",
        "On walks",
        "Nobody, 2020",
        tables={"table1": table},
        figures={"figure1": figure},
        claims=claims,
    )
