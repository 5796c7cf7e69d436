"""How many batches `recalibrate(tolerance=...)` needs on CIFAR-10, and how good the result is."""

from __future__ import annotations

import argparse
import copy
import os
from pathlib import Path

import torch
from torch import nn

import varshift as vs
from _timing import table, write
from varshift_lab._trainer import TrainingSettings, train
from varshift_lab.data import cifar10, tensor_loader
from varshift_lab.networks import preresnet

FOLDER = Path(os.environ.get("VARSHIFT_DATA", Path(__file__).parents[2] / "shared" / "data")) / "cifar10"


def errors(estimate: nn.Module, reference: nn.Module) -> tuple[float, float]:
    """Medians over all channels: relative error of the standard deviation, error of the mean in sigmas."""
    stds, means = [], []
    for a, b in zip(estimate.modules(), reference.modules(), strict=True):
        if isinstance(a, nn.BatchNorm2d) and isinstance(b, nn.BatchNorm2d):
            sigma = b.running_var.sqrt()
            used = sigma > 0
            stds.append((a.running_var.sqrt() / sigma - 1).abs()[used])
            means.append(((a.running_mean - b.running_mean) / sigma).abs()[used])
    return float(torch.cat(stds).median()), float(torch.cat(means).median())


def main() -> None:
    """Trains a network for an epoch on part of the data, recalibrates it both ways, writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--tolerance", type=float, default=0.01)
    arguments = parser.parse_args()
    if not FOLDER.is_dir():
        print(f"skipped: CIFAR-10 is not in {FOLDER} (set VARSHIFT_DATA to the folder of data sets)")
        return
    data = cifar10(FOLDER)
    images, labels = data.normalised(), data.labels
    rows = []
    for seed in range(arguments.seeds):
        torch.manual_seed(seed)
        net = preresnet(20, 10, dropout=0.5, placement="a", in_channels=3)
        some = tensor_loader(images[:12800], labels[:12800], 128, shuffle=True, seed=seed)
        train(net, some, TrainingSettings(epochs=1, learning_rate=0.1, seed=seed))
        loader = tensor_loader(images, labels, 128, shuffle=True, seed=seed)
        full = copy.deepcopy(net)
        whole = vs.recalibrate(full, loader)
        early = vs.recalibrate(net, loader, tolerance=arguments.tolerance)
        std, mean = errors(net, full)
        rows.append(
            [
                str(seed),
                f"{early.batches} of {whole.batches}",
                f"{early.batches / whole.batches:.3f}",
                str(early.converged),
                f"{100 * std:.2f} %",
                f"{100 * mean:.2f} %",
            ]
        )
    header = [
        "seed",
        "batches",
        "share",
        "converged",
        "median error of the standard deviation",
        "of the mean, in sigmas",
    ]
    text = (
        "PreResNet-20 with Dropout-(a) at 0.5 after 100 training steps; CIFAR-10, 50,000 images, batch 128; "
        f"`recalibrate(tolerance={arguments.tolerance})` against a full pass "
        "(`python benchmarks/tolerance.py`). Errors are medians over all channels of all norms."
    )
    write("tolerance", "Early stop of `recalibrate`", text + "\n\n" + table(header, rows))


if __name__ == "__main__":
    main()
