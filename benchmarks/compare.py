"""Comparisons: six variants on digits, killed twice in between; and how often equal variants are told apart.

Run by itself: ``python benchmarks/compare.py [digits] [equal] [simulated]``; all three by default. Results of
parts that are not run again are kept.

digits: the default variants of a pre-activation residual network with dropout in front of the last norm of
each branch, three seeds, two workers. Once undisturbed, and once killed (SIGKILL to all of its processes)
after a third and after two thirds of the trainings; both tables must agree in all but times.

equal: variants that are equal by construction, for they differ in nothing but the random numbers of their
initial weights. A repetition is a whole comparison with trainings; none of its pairs should differ.

simulated: the same with figures drawn from distributions, many more times.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

import varshift as vs
from _timing import RESULTS, provenance, table
from varshift.comparison import LEVEL, holm, paired
from varshift.store import Store
from varshift_lab.data import digits, tensor_loader
from varshift_lab.networks import preresnet

PARTS = ("digits", "equal", "simulated")
DEPTH, WIDTH, EPOCHS, SEEDS, WORKERS, DROPOUT = 8, 8, 3, 3, 2, 0.5


def build() -> nn.Module:
    """The network of the demo, less deep."""
    options = {"block": "basic", "dropout": DROPOUT, "placement": "a", "in_channels": 1, "width": WIDTH}
    return preresnet(DEPTH, 10, **options)


def compare_digits(store: Path, out: Path) -> None:
    """One comparison on digits, as a process of its own."""
    data = digits()
    training = tensor_loader(data.train_images, data.train_labels, 64, shuffle=True, drop_last=True)
    held_out = tensor_loader(data.test_images, data.test_labels, 256)
    vs.compare(
        build,
        loader=training,
        val_loader=held_out,
        seeds=SEEDS,
        epochs=EPOCHS,
        learning_rate=0.01,
        store=store,
        workers=WORKERS,
    ).save(out)


def start(folder: Path) -> subprocess.Popen[bytes]:
    """A comparison in a session of its own."""
    command = [sys.executable, __file__, "--run", str(folder / "store"), str(folder / "table.json")]
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )


def done(folder: Path) -> int:
    """Trainings that are done."""
    if not (folder / "store" / "lab.sqlite").is_file():
        return 0
    with Store(folder / "store") as store:
        wanted = store.wanted()
        return store.progress(wanted[0][2]).counts["done"] if wanted else 0


def finish(running: subprocess.Popen[bytes], folder: Path) -> vs.Comparison:
    """The table, once a comparison has ended."""
    if running.wait():
        raise SystemExit((folder / "log").read_text()[-2000:])
    return vs.Comparison.from_json(folder / "table.json")


def without_times(comparison: vs.Comparison) -> vs.Comparison:
    """A comparison but for its times."""
    rows = tuple(dataclasses.replace(row, seconds=None) for row in comparison.variants)
    return dataclasses.replace(comparison, variants=rows)


def measure_digits() -> str:
    """The comparison on digits, undisturbed and killed."""
    with tempfile.TemporaryDirectory() as name:
        calm, killed = Path(name) / "calm", Path(name) / "killed"
        calm.mkdir(), killed.mkdir()
        began = time.monotonic()
        undisturbed = finish(start(calm), calm)
        calm_seconds = time.monotonic() - began
        began, total = time.monotonic(), SEEDS * len(undisturbed.variants)
        for share in (1, 2):
            running = start(killed)
            while running.poll() is None and done(killed) < share * total // 3:
                time.sleep(0.1)
            os.killpg(running.pid, signal.SIGKILL)
            running.wait()
        other = finish(start(killed), killed)
        killed_seconds = time.monotonic() - began
    equal = without_times(other) == without_times(undisturbed)
    load = f"{os.getloadavg()[1]:.0f}"
    text = (
        f"The six default variants of a pre-activation residual network of {DEPTH} layers (width {WIDTH}, "
        f"dropout {DROPOUT} in front of the last norm of each branch) on digits, {SEEDS} seeds, "
        f"{EPOCHS} epochs, {WORKERS} workers of one thread: {calm_seconds:.0f} s undisturbed, "
        f"{killed_seconds:.0f} s with two kills of all processes and two new starts (average load of the "
        f"machine {load}, {os.cpu_count()} cores). The two tables {'agree' if equal else 'DO NOT AGREE'} "
        "in all but times."
    )
    return f"{text}\n\n```text\n{undisturbed}\n```"


def blobs(count: int, seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of three noisy classes in eight dimensions."""
    draw = torch.Generator().manual_seed(seed)
    centres = torch.randn(3, 8, generator=torch.Generator().manual_seed(99))
    classes = torch.randint(0, 3, (count,), generator=draw)
    inputs = centres[classes] + torch.randn(count, 8, generator=draw)
    return list(zip(inputs.split(16), classes.split(16), strict=True))


def small() -> nn.Module:
    """A small network with dropout in front of a batch norm."""
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.5), nn.BatchNorm1d(16), nn.Linear(16, 3))


def started_otherwise(network: nn.Module, number: int) -> nn.Module:
    """The same network with other initial weights of the same distribution."""
    torch.manual_seed(torch.initial_seed() * 1000 + number)
    return small()


def measure_equal(count: int = 150) -> str:
    """How many groups of seeds tell equal variants apart that were trained."""
    comparison = vs.compare(
        small,
        loader=blobs(96, 0),
        val_loader=blobs(208, 1),
        variants={f"start {i}": partial(started_otherwise, number=i) for i in (1, 2)},
        seeds=[1000 + seed for seed in range(count)],
        epochs=1,
        learning_rate=0.01,
        early_stop=False,
    )
    rows = []
    for size in (3, 5, 10):
        groups = count // size
        wrong = 0
        for group in range(groups):
            part = slice(group * size, (group + 1) * size)
            columns = [row.values[part] for row in comparison.variants]
            tests = [paired(first, second) for first, second in itertools.combinations(columns, 2)]
            wrong += any(p < LEVEL for p in holm([test.p for test in tests]))
        share = wrong / groups
        rows.append(
            [str(size), str(groups), str(wrong), f"{1 - share:.3f} ± {math.sqrt(max(wrong, 1)) / groups:.3f}"]
        )
    header = ["seeds", "comparisons", "with a false verdict", "share without"]
    text = (
        "Three variants (three pairs) that differ in the random numbers of their initial weights alone, "
        f"trained with {count} seeds; disjoint groups of seeds are judged as comparisons of their own. With "
        f"all {count} seeds: {' '.join(pair.text for pair in comparison.pairs)}"
    )
    return f"{text}\n\n{table(header, rows)}"


Draw = Callable[[random.Random], float]
DRAWS: dict[str, Draw] = {
    "normal": lambda draw: draw.gauss(0, 1),
    "heavy tails (t with 3 degrees)": lambda draw: (
        draw.gauss(0, 1) / math.sqrt(sum(draw.gauss(0, 1) ** 2 for _ in range(3)) / 3)
    ),
    "skewed (exponential)": lambda draw: draw.expovariate(1),
    "two clusters (1 in 10 trainings fails)": lambda draw: draw.gauss(0, 1) + 10 * (draw.random() < 0.1),
}


def measure_simulated(repetitions: int = 4000) -> str:
    """How many tables of drawn figures tell equal variants apart, and how often a difference is seen."""
    rows = []
    for name, one in DRAWS.items():
        for variants in (2, 6):
            for seeds in (3, 5, 10):
                draw = random.Random(f"{name} {variants} {seeds}")
                wrong = sum(_told(draw, one, variants, seeds) for _ in range(repetitions))
                error = math.sqrt(max(wrong, 1)) / repetitions
                rows.append([name, str(variants), str(seeds), f"{wrong / repetitions:.4f} ± {error:.4f}"])
    header = ["trainings", "variants", "seeds", "share of tables with a false verdict"]
    text = (
        f"Figures of equal variants drawn from a distribution, {repetitions} tables each, judged as a "
        f"comparison judges them; at most {LEVEL} is promised where differences are normal. "
        "Differences of two equal variants are symmetric whatever the distribution of each."
    )
    return f"{text}\n\n{table(header, rows)}"


def _told(draw: random.Random, one: Draw, variants: int, seeds: int) -> bool:
    common = [draw.gauss(0, 1) for _ in range(seeds)]  # what a seed does to all variants alike
    columns = [[value + one(draw) for value in common] for _ in range(variants)]
    tests = [paired(first, second) for first, second in itertools.combinations(columns, 2)]
    return any(p < LEVEL for p in holm([test.p for test in tests]))


def main() -> int:
    """Runs the parts asked for and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--run", nargs=2, metavar=("STORE", "OUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        compare_digits(*map(Path, arguments.run))
        return 0
    kept = RESULTS / "compare.json"
    texts = json.loads(kept.read_text()) if kept.is_file() else {}
    measures = {"digits": measure_digits, "equal": measure_equal, "simulated": measure_simulated}
    for part in arguments.parts or PARTS:
        texts[part] = f"{measures[part]()}\n\nMeasured with {provenance()}."
        kept.write_text(json.dumps(texts, indent=2) + "\n")
    titles = {
        "digits": "Digits",
        "equal": "Equal variants, trained",
        "simulated": "Equal variants, simulated",
    }
    sections = [f"## {titles[part]}\n\n{texts[part]}" for part in PARTS if part in texts]
    page = "# Comparisons\n\n`python benchmarks/compare.py`\n\n" + "\n\n".join(sections) + "\n"
    (RESULTS / "compare.md").write_text(page)
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
