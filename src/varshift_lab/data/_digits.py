"""The 1,797 handwritten digits of 8 x 8 pixels that scikit-learn ships."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from varshift_lab.data._images import Images, channel_moments

# Every fourth image is held out: a split that needs no random numbers and so is the same everywhere.
_HELD_OUT = 4


@dataclass(frozen=True, slots=True)
class Digits:
    """The digits, split and normalised.

    Attributes:
        train_images: ``(1348, 1, 8, 8)``, float32, mean 0 and variance 1 over all pixels.
        train_labels: ``(1348,)``, int64 in 0 to 9.
        test_images: ``(449, 1, 8, 8)``, normalised by the mean and deviation of the training images.
        test_labels: ``(449,)``.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def digits() -> Digits:
    """Loads the digits from scikit-learn (nothing is downloaded) and holds out every fourth one.

    Raises:
        ImportError: If scikit-learn is not installed (extra ``lab``).
    """
    images, labels = _load()
    held_out = _held_out(len(images))
    mean, std = images[~held_out].mean(), images[~held_out].std()
    images = (images - mean) / std
    return Digits(images[~held_out], labels[~held_out], images[held_out], labels[held_out])


def _load() -> tuple[Tensor, Tensor]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError('the digits need scikit-learn: pip install "varshift[lab]".') from error
    values, targets = load_digits(return_X_y=True)
    images = torch.tensor(values, dtype=torch.float32).view(-1, 1, 8, 8)
    return images, torch.tensor(targets, dtype=torch.int64)


def _held_out(samples: int) -> Tensor:
    return torch.arange(samples) % _HELD_OUT == _HELD_OUT - 1


def digit_images(*, train: bool = True) -> Images:
    """The digits as bytes, ``(N, 1, 8, 8)``, split as by `digits`.

    Their 17 grey levels are spread over a byte, times 15; mean and deviation are of the training digits.

    Args:
        train: The 1,348 training digits, otherwise the 449 that are held out.

    Raises:
        ImportError: If scikit-learn is not installed (extra ``lab``).
    """
    values, labels = _load()
    images = (values * 15).to(torch.uint8)
    held_out = _held_out(len(images))
    mean, std = channel_moments(images[~held_out])
    mask = ~held_out if train else held_out
    classes = tuple(str(digit) for digit in range(10))
    return Images(images[mask], labels[mask], mean, std, classes=classes, name="digits")
