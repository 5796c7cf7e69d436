"""CIFAR-10 from compressed arrays: one file per batch of the original, pixels stored as differences."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

# Channel means and deviations of the training pixels over 255.
_MEAN = (0.4914, 0.4822, 0.4465)
_STD = (0.2470, 0.2435, 0.2616)


@dataclass(frozen=True, slots=True)
class Images:
    """A set of images with their classes.

    Attributes:
        pixels: ``(N, 3, 32, 32)``, uint8.
        labels: ``(N,)``, int64.
    """

    pixels: Tensor
    labels: Tensor

    def normalised(self) -> Tensor:
        """The images with mean 0 and variance 1 per channel over the training set, float32."""
        mean = torch.tensor(_MEAN).view(1, 3, 1, 1)
        std = torch.tensor(_STD).view(1, 3, 1, 1)
        return (self.pixels.float() / 255 - mean) / std


def cifar10(folder: str | Path, *, train: bool = True, batches: int = 5) -> Images:
    """Reads CIFAR-10.

    Args:
        folder: Folder with ``data_batch_1.npz`` to ``data_batch_5.npz`` and ``test_batch.npz``.
        train: The training images, otherwise the 10,000 test images.
        batches: How many of the five training files of 10,000 images to read.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If `batches` is out of range.
    """
    if not 1 <= batches <= 5:
        raise ValueError(f"batches={batches}: CIFAR-10 has 1 to 5 training files.")
    names = [f"data_batch_{number}" for number in range(1, batches + 1)] if train else ["test_batch"]
    parts = [_read(Path(folder) / f"{name}.npz") for name in names]
    return Images(torch.cat([pixels for pixels, _ in parts]), torch.cat([labels for _, labels in parts]))


def _read(path: Path) -> tuple[Tensor, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: expected the files of CIFAR-10 in '{path.parent}'.")
    with np.load(path) as stored:
        # Stored are horizontal and vertical differences of the planes R-G, G, B-G, all modulo 256.
        planes = stored["residual"].cumsum(axis=2, dtype=np.uint8).cumsum(axis=3, dtype=np.uint8)
        planes[0] += planes[1]
        planes[2] += planes[1]
        labels = stored["labels"].astype(np.int64)
    return torch.from_numpy(np.ascontiguousarray(planes.transpose(1, 0, 2, 3))), torch.from_numpy(labels)
