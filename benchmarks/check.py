"""What a capture and a check cost, in bare forward passes of the same samples."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

import varshift as vs
from _models import Case, cases
from _timing import in_turn, ratio, show, table, write
from recalibrate import forwards
from varshift.flow import capture
from varshift.integrations import declare_torchvision_operators

PIXELS = 224
BATCHES = 16


class Block(nn.Module):
    """Two convolutions, three norms and a dropout around a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(3))
        self.convolutions = nn.ModuleList(nn.Conv2d(width, width, 3, 1, 1, bias=False) for _ in range(2))
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        """Adds the branch to the shortcut."""
        y = self.convolutions[0](self.norms[0](x).relu())
        return x + self.norms[2](self.convolutions[1](self.drop(self.norms[1](y).relu())))


def deep(blocks: int, width: int = 16) -> nn.Module:
    """A pre-activation residual network of ``2 * blocks + 2`` layers."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, 1, 1), *(Block(width) for _ in range(blocks)), nn.BatchNorm2d(width),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10),
    )  # fmt: skip


def whole_networks() -> dict[str, Callable[[], nn.Module]]:
    """The networks whose capture has a price agreed on."""
    declare_torchvision_operators()
    import timm
    import torchvision

    return {
        "timm DenseNet-121, dropout .2": lambda: timm.create_model("densenet121", proj_drop_rate=0.2),
        "torchvision ResNet-50": torchvision.models.resnet50,
        "timm EfficientNet-B0, drop path .2": lambda: timm.create_model(
            "efficientnet_b0", drop_path_rate=0.2
        ),
    }


def two_samples(name: str, model: nn.Module, pixels: int, rounds: int) -> list[str]:
    """Capture and data-free check in bare forward passes of two samples in train mode."""
    x = torch.randn(2, 3, pixels, pixels)
    with torch.no_grad():  # norms that have learned, whose shift a check predicts, too
        for _ in range(3):
            model.train()(torch.randn_like(x))

    def bare() -> None:
        with torch.no_grad():
            model.train()(x)

    seconds = in_turn(
        {
            "bare": bare,
            "capture": lambda: capture(model, x),
            "check": lambda: vs.check(model, shape=(3, pixels, pixels)),
        },
        rounds,
        time.process_time,
    )
    return [name, *(show(ratio(seconds, above, "bare")) for above in ("capture", "check"))]


def bare_forwards(case: Case, noisy: bool) -> None:
    """The forward passes of one check on every batch: states that cannot differ share one.

    With noise these are train, train without noise and three times eval, without it one of train and two of
    eval. The short passes on a few samples are part of what a check costs beyond them.
    """
    model = case.model.train()
    with torch.no_grad():
        for x, _ in case.batches:
            model(x)
    if noisy:
        forwards(model, case, batch_statistics=True)
    for _ in range(3 if noisy else 2):
        forwards(model, case, batch_statistics=False)


def with_data(case: Case, rounds: int) -> list[str]:
    """A whole check with data over the forward passes that it makes."""
    with torch.no_grad():
        for x, _ in case.batches:
            case.model.train()(x)
    noisy = bool(vs.check(case.model, case.batches[:1]).noises)
    seconds = in_turn(
        {"check": lambda: vs.check(case.model, case.batches), "forwards": lambda: bare_forwards(case, noisy)},
        rounds,
        time.process_time,
    )
    return [case.name, "5" if noisy else "3", show(ratio(seconds, "check", "forwards"))]


def main() -> None:
    """Measures all networks and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="measure networks whose name contains this, write nothing")
    parser.add_argument(
        "--deep", type=int, nargs="*", default=[36, 108, 324], help="blocks of the deep networks"
    )
    parser.add_argument("--without-data", action="store_true", help="leave out the checks with data")
    parser.add_argument("--data-only", action="store_true", help="leave out the checks without data")
    arguments = parser.parse_args()
    rounds, only = arguments.rounds, arguments.only
    torch.manual_seed(0)
    if not arguments.data_only:
        parts = samples(rounds, only, arguments.deep)
        print("\n\n".join(parts)) if only else write(
            "check", "Cost of `check` without data", "\n\n".join(parts)
        )
    if not arguments.without_data:
        rows = [with_data(case, rounds) for case in cases(BATCHES) if only in case.name]
        text = (
            f"A whole check with {BATCHES} batches over the forward passes that it makes on them, in process "
            f"time: median and quartiles of {rounds} rounds in one run (`python benchmarks/check.py`).\n\n"
        ) + table(["network", "passes", "check / its forwards"], rows)
        print(text) if only else write("check_data", "Cost of `check` with data", text)


def samples(rounds: int, only: str, deep_blocks: list[int]) -> list[str]:
    """The tables of captures and of checks without data."""
    header = ["network", "capture of both modes", "check without data"]
    pictures = [
        two_samples(name, build(), PIXELS, rounds) for name, build in whole_networks().items() if only in name
    ]
    depths = [
        two_samples(f"residual, {2 * blocks + 2} layers, {3 * blocks + 1} norms", deep(blocks), 32, rounds)
        for blocks in deep_blocks
        if only in "residual"
    ]
    parts = [
        f"Process time in bare forward passes of the same two samples at {PIXELS} pixels: median and "
        f"quartiles of {rounds} rounds in one run (`python benchmarks/check.py`).",
        table(header, pictures),
    ]
    if depths:
        parts += ["Residual networks of growing depth, at 32 pixels.", table(header, depths)]
    return parts


if __name__ == "__main__":
    main()
