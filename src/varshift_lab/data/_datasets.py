"""The data sets by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from varshift_lab.data._cifar import cifar10, cifar100
from varshift_lab.data._digits import digit_images
from varshift_lab.data._fashion import fashion_mnist
from varshift_lab.data._folder import imagenet
from varshift_lab.data._images import Images

_SETS: dict[str, Callable[..., Images]] = {
    "digits": digit_images,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "fashion_mnist": fashion_mnist,
    "imagenet": imagenet,
}


def dataset_names() -> tuple[str, ...]:
    """The names that `dataset` knows."""
    return tuple(_SETS)


def dataset(name: str, folder: str | Path | None = None, *, train: bool = True, **options: Any) -> Images:
    """Reads a data set by its name.

    Args:
        name: One of ``digits``, ``cifar10``, ``cifar100``, ``fashion_mnist`` and ``imagenet``.
        folder: Where its files are; by default the folder of data sets. The digits need none.
        train: The training images, otherwise the test images.
        options: Further arguments of the function of that name.

    Raises:
        ValueError: If the name is unknown.

    Example:
        >>> from varshift_lab.data import dataset
        >>> len(dataset("digits")), len(dataset("digits", train=False))
        (1348, 449)
    """
    if name not in _SETS:
        raise ValueError(f"name={name!r} must be one of {', '.join(_SETS)}.")
    if name == "digits":
        return digit_images(train=train, **options)
    return _SETS[name](folder, train=train, **options)
