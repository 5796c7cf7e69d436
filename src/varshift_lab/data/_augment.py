"""Augmentation of a whole epoch at once: the same code and the same images on every device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from varshift._arguments import between, count
from varshift.data import generator_of
from varshift_lab.data._images import Images, normalise

Border = Literal["zero", "mean", "reflect", "edge", "wrap"]

# Bytes of output made at a time: little enough for the cache of a processor, much for a GPU.
_CHUNK = {"cpu": 8 << 20, "other": 1 << 30}


@dataclass(frozen=True, slots=True)
class Draws:
    """The random numbers of an epoch, one of each kind per image.

    Attributes:
        rows: ``(N,)``, int64, 0 to ``2 pad``: the first row of the padded image that is kept.
        columns: The first column, likewise.
        flipped: ``(N,)``, bool: mirrored left to right.
        cut_rows: The row of the centre of the cutout.
        cut_columns: Its column.
    """

    rows: Tensor
    columns: Tensor
    flipped: Tensor
    cut_rows: Tensor
    cut_columns: Tensor

    def take(self, index: Tensor) -> Draws:
        """The numbers of some of the images."""
        return Draws(*(getattr(self, name)[index] for name in self.__slots__))

    def to(self, device: torch.device | str) -> Draws:
        """The same numbers on a device."""
        return Draws(*(getattr(self, name).to(device, non_blocking=True) for name in self.__slots__))


@dataclass(frozen=True, slots=True)
class Augmentation:
    """What is done to the training images: pad and crop, then flip, then cut out.

    To pad by 4 and crop at random is to shift by up to 4 pixels each way; `border` says what comes in from
    outside. The cutout is a square with its centre anywhere in the image, so that part of it may lie outside,
    filled with 0 after normalisation, as DeVries and Taylor (2017) do in their code.

    The random numbers come from the processor, for a whole epoch at once, five for each image, whether all
    are used or not. So the same seed gives the same images on every device, and one setting does not change
    what the others do.

    Attributes:
        pad: Pixels of padding on each side; 0 for none.
        border: ``"zero"`` (black), ``"mean"`` (the mean of each channel, rounded to a byte), ``"reflect"``
            (without repeating the edge), ``"edge"`` (the nearest pixel) or ``"wrap"`` (the other side).
        flip: Probability of mirroring left to right.
        cutout: Side of the square in pixels; 0 for none.

    Raises:
        ValueError: If a number is out of range or the border is none of these.

    Example:
        >>> import torch
        >>> from varshift_lab.data import Augmentation, Images
        >>> pixels = torch.arange(2 * 3 * 64).view(2, 3, 8, 8).to(torch.uint8)
        >>> images = Images(pixels, torch.tensor([0, 1]))
        >>> Augmentation(pad=1, flip=0.5).epoch(images, seed=0, epoch=3).shape
        torch.Size([2, 3, 8, 8])
    """

    pad: int = 0
    border: Border = "zero"
    flip: float = 0.0
    cutout: int = 0

    def __post_init__(self) -> None:
        count("pad", self.pad, 0)
        count("cutout", self.cutout, 0)
        between("flip", self.flip, 0, 1)
        if self.border not in get_args(Border):
            raise ValueError(f"border={self.border!r} must be one of {', '.join(get_args(Border))}.")

    def draw(self, samples: int, height: int, width: int, generator: torch.Generator) -> Draws:
        """Draws the numbers for this many images of this size."""
        if self.border in ("reflect", "wrap") and self.pad >= min(height, width):
            raise ValueError(
                f"pad={self.pad} must be below the {min(height, width)} pixels of an image with "
                f"border={self.border!r}."
            )
        uniform = torch.rand(5, samples, generator=generator, dtype=torch.float64, device="cpu")

        def below(row: int, end: int) -> Tensor:
            return (uniform[row] * end).long().clamp(max=end - 1)  # rounding may carry a product to the end

        places = 2 * self.pad + 1
        return Draws(
            below(0, places), below(1, places), uniform[2] < self.flip, below(3, height), below(4, width)
        )

    def epoch(
        self,
        images: Images,
        *,
        seed: int,
        epoch: int,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
    ) -> Tensor:
        """All images of an epoch, augmented and normalised, in their stored order."""
        draws = self.draws(images, seed, epoch).to(images.pixels.device)
        index = torch.arange(len(images), device=images.pixels.device)
        return self.apply(images, index, draws, dtype=dtype, channels_last=channels_last)

    def draws(self, images: Images, seed: int, epoch: int) -> Draws:
        """The numbers of an epoch; they follow from the seed and the epoch alone."""
        height, width = images.pixels.shape[2:]
        # Apart from the numbers that the same seed and epoch give the order.
        return self.draw(len(images), height, width, generator_of(seed ^ 0x6175676D656E74, epoch))

    def apply(
        self,
        images: Images,
        index: Tensor,
        draws: Draws,
        *,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
    ) -> Tensor:
        """Gathers, augments and normalises some images, all at once.

        Args:
            images: The whole set.
            index: ``(n,)``, which of them, on their device.
            draws: The numbers of the whole set, on their device.
            dtype: Type of the output; what is done before is rounded to float32.
            channels_last: Lay the output out with the channels innermost.

        Returns:
            ``(n, C, H, W)``.
        """
        if not dtype.is_floating_point:
            raise ValueError(f"dtype={dtype} must be a floating-point type.")
        pixels = images.pixels
        layout = torch.channels_last if channels_last else torch.contiguous_format
        shape = (len(index), *pixels.shape[1:])
        out = torch.empty(shape, dtype=dtype, device=pixels.device, memory_format=layout)
        each = pixels[0].numel() * out.element_size() if len(pixels) else 1
        step = max(1, _CHUNK["cpu" if pixels.device.type == "cpu" else "other"] // max(each, 1))
        for start in range(0, len(index), step):
            part = index[start : start + step]
            numbers, target = draws.take(part), out[start : start + step]
            moved = self._move(pixels[part], numbers, images)
            normalise(moved, images.mean, images.std, dtype, out=target)
            if self.cutout:
                target.masked_fill_(self._cut(numbers, *shape[2:]), 0)
        return out

    def _move(self, pixels: Tensor, draws: Draws, images: Images) -> Tensor:
        if self.pad:
            samples, channels, height, width = pixels.shape
            padded, places = self._padded(pixels, images), 2 * self.pad + 1
            image, channel, row, column = padded.stride()
            # Every crop of every image as a view, of which one for each image is copied.
            windows = padded.as_strided(
                (samples, places, places, channels, height, width),
                (image, row, column, channel, row, column),
            )
            pixels = windows[torch.arange(samples, device=pixels.device), draws.rows, draws.columns]
        if self.flip:
            pixels = torch.where(draws.flipped.view(-1, 1, 1, 1), pixels.flip(3), pixels)
        return pixels

    def _padded(self, pixels: Tensor, images: Images) -> Tensor:
        samples, channels, height, width = pixels.shape
        if self.border in ("zero", "mean"):
            level = [round(255 * value) for value in images.mean] if self.border == "mean" else [0] * channels
            fill = torch.tensor(level, dtype=torch.uint8).view(1, channels, 1, 1).to(pixels.device)
            padded = fill.repeat(samples, 1, height + 2 * self.pad, width + 2 * self.pad)
            padded[:, :, self.pad : self.pad + height, self.pad : self.pad + width] = pixels
            return padded
        rows, columns = (self._outside(length, pixels.device) for length in (height, width))
        return pixels[:, :, rows][:, :, :, columns].contiguous()

    def _outside(self, length: int, device: torch.device) -> Tensor:
        """Which pixel stands at each place from ``-pad`` to ``length + pad - 1``."""
        places = torch.arange(-self.pad, length + self.pad, device=device)
        if self.border == "edge":
            return places.clamp(0, length - 1)
        if self.border == "wrap":
            return places.remainder(length)
        return (length - 1) - ((length - 1) - places.abs()).abs()

    def _cut(self, draws: Draws, height: int, width: int) -> Tensor:
        def inside(centres: Tensor, length: int) -> Tensor:
            first = centres[:, None] - self.cutout // 2
            places = torch.arange(length, device=centres.device)
            return (places >= first) & (places < first + self.cutout)

        rows, columns = inside(draws.cut_rows, height), inside(draws.cut_columns, width)
        return rows[:, None, :, None] & columns[:, None, None, :]


def pad_crop_flip(pad: int = 4, *, border: Border = "zero", cutout: int = 0) -> Augmentation:
    """The standard augmentation of CIFAR: pad by 4, crop, and flip half of the images."""
    return Augmentation(pad=pad, border=border, flip=0.5, cutout=cutout)
