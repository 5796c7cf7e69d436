"""What a watch costs a training: its share of a step, and its memory.

Run by itself: ``python benchmarks/watch.py``. The time of `Watch.step` is over that of the training
step before it, each in process time in one run, so that other work on the machine hurts both.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import varshift as vs
from _timing import table, write
from varshift_lab.networks import PreResNet

BATCH = 128


def share(every: int, steps: int) -> tuple[float, float, float]:
    """Time of all calls of `step` over that of all steps, the median of single ratios, and the dearest."""
    torch.manual_seed(0)
    model = PreResNet(20, in_channels=3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    x, y = torch.randn(BATCH, 3, 32, 32), torch.randint(10, (BATCH,))
    training, watching = [], []
    with vs.watch(model, every=every, optimizer=optimizer) as watch:
        for _ in range(steps):
            start = time.process_time()
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()
            between = time.process_time()
            watch.step()
            training.append(between - start)
            watching.append(time.process_time() - between)
    ratios = [a / b for a, b in zip(watching, training, strict=True)]
    return sum(watching) / sum(training), statistics.median(ratios), max(ratios)


def memory() -> tuple[int, int]:
    """Bytes of the watch's vectors, and of the buffers of all norms."""
    model = PreResNet(20, in_channels=3)
    watch = vs.watch(model)
    statistics = watch._recorder.statistics
    kept = sum(t.numel() * t.element_size() for pair in statistics._buffers for t in pair)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    return kept, sum(b.numel() * b.element_size() for m in norms for b in m.buffers())


def main() -> None:
    """Measures, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100, help="training steps of each run")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for every in (1, 20):
        whole, middle, most = share(every, arguments.steps)
        rows.append([str(every), f"{100 * whole:.3f} %", f"{100 * middle:.3f} %", f"{100 * most:.2f} %"])
    kept, owned = memory()
    write(
        "watch",
        "What a watch costs",
        f"PreResNet-20 on 32 pixels, batches of {BATCH}, {arguments.steps} steps. Vectors of the watch: "
        f"{kept / owned:.2f} times the buffers of the norms.\n\n"
        + table(["every", "all of `step()` over all training steps", "median", "dearest"], rows),
    )


if __name__ == "__main__":
    main()
