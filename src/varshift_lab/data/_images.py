"""The one type that every data set comes in: whole sets of images as bytes, with their classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from varshift import DataError

# Images converted at a time for the mean and deviation, so that no copy of the whole set in floats is made.
_CHUNK = 4096


@dataclass(frozen=True, slots=True, eq=False)
class Images:
    """A set of images with their classes, all of it in one tensor each.

    Attributes:
        pixels: ``(N, C, H, W)``, uint8.
        labels: ``(N,)``, int64: what a network is trained on, with wrong labels where some were put in.
        mean: Mean of each channel over the training set, of pixels over 255; by default that of `pixels`.
        std: Deviation of each channel, likewise.
        classes: Names of the classes; empty where they are not known.
        true_labels: ``(N,)``, the labels before some were made wrong; None where none were.
        name: Which data these are, for tables.

    Raises:
        DataError: If the tensors are not of these shapes and types, or the numbers not one per channel.

    Example:
        >>> import torch
        >>> from varshift_lab.data import Images
        >>> images = Images(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1), torch.tensor([0, 1]))
        >>> images.normalised().flatten().tolist()
        [-1.0, 1.0]
    """

    pixels: Tensor
    labels: Tensor
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    classes: tuple[str, ...] = ()
    true_labels: Tensor | None = field(default=None, repr=False)
    name: str = ""

    def __post_init__(self) -> None:
        pixels, labels = self.pixels, self.labels
        if pixels.dtype != torch.uint8 or pixels.dim() != 4:
            raise DataError(
                f"pixels are {pixels.dtype} of shape {tuple(pixels.shape)}: expected uint8 (N, C, H, W)."
            )
        for name, values in (("labels", labels), ("true_labels", self.true_labels)):
            if values is not None and (values.dtype != torch.int64 or values.shape != pixels.shape[:1]):
                raise DataError(
                    f"{name} are {values.dtype} of shape {tuple(values.shape)}: expected int64 "
                    f"({pixels.shape[0]},), one class for each image."
                )
        channels = pixels.shape[1]
        if not self.mean and not self.std:
            mean, std = channel_moments(pixels)
            object.__setattr__(self, "mean", mean)
            object.__setattr__(self, "std", std)
        if len(self.mean) != channels or len(self.std) != channels or not all(s > 0 for s in self.std):
            raise DataError(
                f"mean={self.mean} and std={self.std}: expected one number for each of {channels} channels, "
                "deviations above 0."
            )

    def __len__(self) -> int:
        """Number of images."""
        return len(self.pixels)

    @property
    def num_classes(self) -> int:
        """Number of classes: of their names, or one more than the largest label."""
        if self.classes:
            return len(self.classes)
        return int(self.labels.max()) + 1 if len(self) else 0

    @property
    def wrong(self) -> Tensor:
        """``(N,)``, bool: which labels were made wrong."""
        if self.true_labels is None:
            return torch.zeros_like(self.labels, dtype=torch.bool)
        return self.labels != self.true_labels

    def to(self, device: torch.device | str) -> Images:
        """The same images on a device; nothing is copied where they are there."""
        true = None if self.true_labels is None else self.true_labels.to(device)
        return replace(self, pixels=self.pixels.to(device), labels=self.labels.to(device), true_labels=true)

    def take(self, index: Tensor | Sequence[int] | slice) -> Images:
        """Some of the images, normalised as all of them are."""
        if not isinstance(index, slice):
            index = torch.as_tensor(index, device=self.labels.device)
            index = index if index.dtype == torch.bool else index.long()
        true = None if self.true_labels is None else self.true_labels[index]
        return replace(self, pixels=self.pixels[index], labels=self.labels[index], true_labels=true)

    def normalised(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The images with mean 0 and variance 1 per channel over the training set."""
        return normalise(self.pixels, self.mean, self.std, dtype)


def normalise(
    pixels: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype, out: Tensor | None = None
) -> Tensor:
    """Pixels over 255, minus the mean and over the deviation of their channel.

    One subtraction and one multiplication, each rounded to float32 on its own, so that all devices agree to
    the last bit.
    """
    numbers = torch.tensor([*mean, *std], dtype=torch.float64).mul(255).view(2, 1, len(mean), 1, 1)
    centre = numbers[0].float().to(pixels.device, non_blocking=True)
    scale = numbers[1].reciprocal().float().to(pixels.device, non_blocking=True)
    if out is None:
        out = torch.empty_like(pixels, dtype=dtype)
    if dtype == torch.float32:
        return torch.sub(pixels, centre, out=out).mul_(scale)
    return out.copy_((pixels - centre).mul_(scale))


def channel_moments(pixels: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel, of pixels over 255; 1 in place of a deviation of 0."""
    count = pixels.numel() // max(pixels.shape[1], 1)
    if count == 0:
        raise DataError(f"pixels of shape {tuple(pixels.shape)} have no mean: pass mean= and std=.")
    total = torch.zeros(pixels.shape[1], dtype=torch.int64, device=pixels.device)
    squares = torch.zeros_like(total)
    for part in pixels.split(_CHUNK):
        whole = part.to(torch.int32)
        total += whole.sum((0, 2, 3))
        squares += whole.square_().sum((0, 2, 3))
    mean = total.double().cpu() / count
    variance = (squares.double().cpu() / count - mean.square()).clamp(min=0)
    std = torch.where(variance > 0, variance.sqrt() / 255, 1.0)
    return tuple((mean / 255).tolist()), tuple(std.tolist())
