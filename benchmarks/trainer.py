"""The trainer against the loop that users of torchvision write, and against what a GPU can do.

``--rounds N`` sets how often each is timed, ``--steps N`` how many batches an epoch has, ``--threads N`` how
many threads compute; ``--only TEXT`` measures the processor's networks whose name has TEXT in it and writes
nothing.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from _timing import ratio, show, table, write
from varshift.integrations import declare_torchvision_operators
from varshift.trials import Workbench
from varshift_lab.data import EpochLoader, Images, pad_crop_flip
from varshift_lab.training import Network, TrainingSettings, fit

declare_torchvision_operators()
from torchvision import transforms  # noqa: E402

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
BATCH = 64
ON_PROCESSOR = {
    "PreResNet-20": Network.of("preresnet", depth=20, block="basic"),
    "DenseNet-BC-22": Network.of("densenet_bc", depth=22),
    "WRN-10-2": Network.of("wide_resnet", depth=10, widen=2),
}
ON_GPU = {
    "PreResNet-110 (18 bottlenecks a stage)": (Network.of("preresnet", depth=110), 128),
    "WRN-28-10": (Network.of("wide_resnet", depth=28, widen=10), 128),
    "DenseNet-BC-100": (Network.of("densenet_bc", depth=100), 64),
}


def random_images(samples: int) -> Images:
    """Images of CIFAR's size; what is on them changes no speed."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (samples, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.arange(samples) % 10
    return Images(pixels, labels, MEAN, STD)


class PillowImages(Dataset[Any]):
    """What `torchvision.datasets.CIFAR10` does with the images that it holds."""

    def __init__(self, images: Images) -> None:
        self.data = images.pixels.permute(0, 2, 3, 1).numpy()
        self.targets = images.labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        from PIL import Image

        return self.transform(Image.fromarray(self.data[index])), self.targets[index]


def plain_loader(images: Images, workers: int) -> DataLoader[Any]:
    """The loader of most training scripts."""
    return DataLoader(
        PillowImages(images),
        BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )


def plain_loop(
    network: nn.Module, loader: DataLoader[Any], layout: torch.memory_format
) -> Callable[[], float]:
    """One epoch of the loop of most training scripts; returns its seconds."""
    network.to(memory_format=layout)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)

    def epoch() -> float:
        start = time.perf_counter()
        running = 0.0
        network.train()
        for inputs, labels in loader:
            inputs = inputs.to(memory_format=layout)
            optimizer.zero_grad()
            loss = F.cross_entropy(network(inputs), labels)
            loss.backward()
            optimizer.step()
            running += loss.item()
        return time.perf_counter() - start

    return epoch


def settings(epochs: int, batch_size: int = BATCH) -> TrainingSettings:
    """The trainer's settings: those of the plain loop."""
    return TrainingSettings(epochs, batch_size, 0.1, schedule="constant", augmentation=pad_crop_flip())


def pipeline(images: Images) -> Callable[[], float]:
    """The batches of one epoch of the trainer, and nothing done with them."""
    loader = EpochLoader(images, BATCH, augmentation=pad_crop_flip(), drop_last=True, channels_last=True)
    return lambda: emptied(loader)


def emptied(loader: DataLoader[Any]) -> float:
    """Seconds to draw all batches of an epoch."""
    start = time.perf_counter()
    for _ in loader:
        pass
    return time.perf_counter() - start


def processor_row(name: str, choice: Network, images: Images, rounds: int) -> list[str]:
    """One line of the processor's table."""
    print(name, flush=True)
    plain, last = torch.contiguous_format, torch.channels_last
    in_process = plain_loader(images, 0)
    contestants: dict[str, Callable[[], float]] = {
        "ours": lambda: fit(choice.build(images), images, settings(1)).seconds[0],
        "none": plain_loop(choice.build(images), in_process, plain),
        "two": plain_loop(choice.build(images), plain_loader(images, 2), plain),
        "last": plain_loop(choice.build(images), in_process, last),
        "pipeline": pipeline(images),
        "plain pipeline": lambda: emptied(in_process),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds + 1):
        for one, epoch in contestants.items():
            took = epoch()
            if turn:  # the first warms up
                seconds[one].append(took)
    speed = len(images) / statistics.median(seconds["ours"])
    shares = (ratio(seconds, "pipeline", "ours"), ratio(seconds, "plain pipeline", "none"))
    row = [
        name,
        f"{speed:.0f}",
        *(show(ratio(seconds, peer, "ours")) for peer in ("none", "two", "last")),
        *(f"{100 * share[0]:.1f} % ({100 * share[1]:.1f} to {100 * share[2]:.1f})" for share in shares),
    ]
    print(*row, sep=" | ", flush=True)
    return row


def matmul_ceiling() -> float:
    """TFLOP/s of a large product of matrices in bfloat16."""
    side = 8192
    left, right = (torch.randn(side, side, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    best = float("inf")
    for _ in range(20):
        torch.cuda.synchronize()
        start = time.perf_counter()
        left @ right
        torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best / 1e12


def gpu_row(name: str, choice: Network, batch_size: int, steps: int, ceiling: float) -> list[str]:
    """One line of the GPU's table."""
    print(name, flush=True)
    images = random_images(batch_size * steps)
    row = [name, str(batch_size)]
    for compiled in (False, True):
        bench = Workbench(device="cuda", precision="bf16-mixed", compile=compiled)
        history = fit(choice.build(images), images, settings(4, batch_size), workbench=bench)
        best = min(history.seconds[1:])
        reached = 1e3 * history.pflop / best
        row += [f"{len(images) / best:.0f}", f"{reached:.1f} ({100 * reached / ceiling:.1f} %)"]
        torch.compiler.reset()
    return row


def gpu_part(steps: int) -> str:
    """The table of a GPU, or why there is none."""
    if not torch.cuda.is_available():
        return "On a GPU: not measured, there was none."
    ceiling = matmul_ceiling()
    rows = [gpu_row(name, *choice, steps, ceiling) for name, choice in ON_GPU.items()]
    head = ["network", "batch", "images/s", "TFLOP/s", "compiled: images/s", "compiled: TFLOP/s"]
    return (
        "On a GPU, bfloat16 autocast, images and augmentation on the device: the best of three epochs of "
        f"{steps} steps; in brackets the share of the {ceiling:.0f} TFLOP/s of a product of 8192 x 8192 "
        "matrices in bfloat16. Operations are those of convolutions and matrix products; the rest of a step, "
        "norms above all, is bound by memory.\n\n" + table(head, rows)
    )


def main() -> None:
    """Measures and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="networks with this in their name; writes nothing")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--gpu-steps", type=int, default=200)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    images = random_images(BATCH * options.steps)
    chosen = {name: one for name, one in ON_PROCESSOR.items() if options.only in name}
    rows = [processor_row(name, one, images, options.rounds) for name, one in chosen.items()]
    head = [
        "network",
        "images/s",
        "plain, 0 workers / ours",
        "plain, 2 workers / ours",
        "plain, 0 workers, channels last / ours",
        "input pipeline of ours",
        "of plain, 0 workers",
    ]
    text = (
        f"Seconds of one epoch of {options.steps} steps of {BATCH} images of 32 x 32 pixels on the processor "
        "(float32, SGD, pad, crop and flip): those of the plain loop over those of the trainer, so that "
        f"above 1 the trainer is faster. Median and quartiles of {options.rounds} rounds in one process "
        "(`python benchmarks/trainer.py`). The plain loop turns, augments and normalises images one by one "
        "with torchvision in a `DataLoader`. The share of an input pipeline is the time to draw the batches "
        "of an epoch, and nothing else, over that of the epoch. Images per second depend on what else the "
        "machine was doing; the ratios were measured in turn.\n\n"
    )
    text += table(head, rows)
    if options.only:
        print(text)
    else:
        write("trainer", "Speed of the trainer", text + "\n\n" + gpu_part(options.gpu_steps))


if __name__ == "__main__":
    main()
