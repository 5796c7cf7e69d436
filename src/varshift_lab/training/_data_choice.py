"""Which data a network is trained and tested on, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch.nn import functional as F

from varshift._arguments import between, count
from varshift.trials import Workbench
from varshift_lab.data import Images, channel_moments, dataset, dataset_names, subset, with_label_noise

# Images resized at a time, so that no copy of the whole set in floats is made.
_CHUNK = 4096


@dataclass(frozen=True, slots=True)
class DataChoice:
    """A data set, or parts of it.

    Attributes:
        name: As `varshift_lab.data.dataset` knows it.
        train: Number of training images, as many of each class; None for all.
        test: Number of test images, likewise.
        size: Side of the images in pixels, None for that of the data: means over blocks where they fit,
            otherwise resized.
        label_noise: Share of training labels that are replaced by another class.
        seed: Seed of which images and which labels; apart from the trial's, so that all seeds share the data.

    Raises:
        ValueError: If a number is out of range or the name unknown.
    """

    name: str
    train: int | None = None
    test: int | None = None
    size: int | None = None
    label_noise: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.name not in dataset_names():
            raise ValueError(f"name={self.name!r} must be one of {', '.join(dataset_names())}.")
        for name in ("train", "test", "size"):
            if getattr(self, name) is not None:
                count(name, getattr(self, name), 1)
        between("label_noise", self.label_noise, 0, 1)

    def load(self, workbench: Workbench) -> tuple[Images, Images]:
        """Training and test images, on the CPU. The last few choices are kept in memory.

        Raises:
            DataError: If the data are damaged, or there are not as many images.
            FileNotFoundError: If they are missing.
        """
        return _load(self, workbench.data_folder)


@lru_cache(maxsize=4)
def _load(choice: DataChoice, folder: Path | None) -> tuple[Images, Images]:
    # A folder of images is decoded at the size that is asked for; 64 pixels fit into memory.
    options = {"size": choice.size or 64} if choice.name == "imagenet" else {}
    train, test = (_whole(choice.name, folder, part, **options) for part in (True, False))
    if choice.train is not None:
        train = subset(train, choice.train, seed=choice.seed)
    if choice.test is not None:
        test = subset(test, choice.test, seed=choice.seed)
    if choice.size is not None and train.pixels.shape[2:] != (choice.size, choice.size):
        train, test = (replace(part, pixels=resized(part.pixels, choice.size)) for part in (train, test))
        mean, std = channel_moments(train.pixels)
        train, test = (replace(part, mean=mean, std=std) for part in (train, test))
    if choice.label_noise:
        train = with_label_noise(train, choice.label_noise, seed=choice.seed)
    return train, test


@lru_cache(maxsize=4)
def _whole(name: str, folder: Path | None, train: bool, **options: int) -> Images:
    return dataset(name, folder, train=train, **options)


def resized(pixels: torch.Tensor, size: int) -> torch.Tensor:
    """Images of ``size x size`` pixels: means over blocks where they fit, otherwise bilinear, antialiased."""
    height, width = pixels.shape[2:]
    parts = []
    for part in pixels.split(_CHUNK):
        if height % size == 0 and width % size == 0:
            small = F.avg_pool2d(part.float(), (height // size, width // size))
        else:
            small = F.interpolate(part.float(), (size, size), mode="bilinear", antialias=True)
        parts.append(small.round_().clamp_(0, 255).to(torch.uint8))
    return torch.cat(parts)
