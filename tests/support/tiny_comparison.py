"""A comparison as a program of its own, that can be killed: ``tiny_comparison.py STORE OUT WORKERS``."""

from __future__ import annotations

import sys
import time

from tiny_training import build, samples, val_loader, wider

import varshift as vs


class SlowBatches:
    """Batches in an order of their own for each epoch, each after a while."""

    def __init__(self, pause: float) -> None:
        self.pause = pause
        self.inputs, self.classes = samples(64, 0).tensors
        self.first = self.inputs[0]  # two tensors of one storage, which workers are sent too

    def __len__(self) -> int:
        return 4

    def __iter__(self):
        import torch

        order = torch.randperm(64)
        for rows in order.split(16):
            time.sleep(self.pause)
            yield self.inputs[rows], self.classes[rows]


if __name__ == "__main__":
    store, out, workers = sys.argv[1:]
    table = vs.compare(
        build,
        loader=SlowBatches(0.05),
        val_loader=val_loader(),
        variants={"recalibrated": "recalibrated", "early-dropout": "early-dropout", "wider": wider},
        seeds=2,
        epochs=4,
        store=store,
        workers=int(workers),
    )
    table.save(out)
