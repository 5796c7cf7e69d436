"""Images in a folder for each class, such as ImageNet, decoded into one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from varshift import DataError
from varshift._arguments import count, positive
from varshift_lab.data._files import places_in
from varshift_lab.data._images import Images

_ENDINGS = (".jpeg", ".jpg", ".png", ".bmp", ".ppm", ".webp", ".tif", ".tiff")
# The customary numbers for ImageNet.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def image_folder(
    folder: str | Path,
    *,
    size: int,
    resize: float = 1.0,
    per_class: int | None = None,
    classes: Sequence[str] | None = None,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
    name: str = "",
    max_gigabytes: float = 16.0,
    workers: int = 8,
) -> Images:
    """Reads a folder with a folder of images for each class: ``(N, 3, size, size)``.

    The shorter side of each image is brought to ``resize * size`` pixels (bilinear with antialiasing), and
    the middle is cut out. Classes are numbered in the order of their names, images in the order of theirs.

    Args:
        folder: Where the folders of the classes are.
        size: Side of the images.
        resize: Shorter side before cropping, in terms of `size`; 256 / 224 is customary for evaluation.
        per_class: Take at most this many of each class, the first ones.
        classes: Take these classes only, in this order.
        mean: Mean of each channel of the training set; by default that of these images.
        std: Deviation, likewise.
        name: Name of the data, for tables; by default that of the folder.
        max_gigabytes: Refuse to take more memory than this.
        workers: Threads that decode.

    Raises:
        ImportError: If pillow is not installed.
        FileNotFoundError: If there is no such folder or class.
        DataError: If a class has no images, one cannot be decoded, or they need too much memory.
    """
    size, workers = count("size", size, 1), count("workers", workers, 1)
    positive("max_gigabytes", max_gigabytes)
    if positive("resize", resize) < 1:
        raise ValueError(f"resize={resize!r} must be at least 1: the images would be smaller than the crop.")
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("decoding images needs pillow: pip install pillow.") from error
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"'{root}' is missing: expected a folder with a folder for each class.")
    names = sorted(path.name for path in root.iterdir() if path.is_dir()) if classes is None else [*classes]
    files, labels = _listed(root, names, per_class)
    gigabytes = len(files) * 3 * size * size / 1e9
    if gigabytes > max_gigabytes:
        raise DataError(
            f"{len(files)} images of {size} x {size} pixels take {gigabytes:.1f} GB, more than "
            f"max_gigabytes={max_gigabytes:g}: use a smaller size= or per_class=, or raise the limit."
        )
    pixels = np.empty((len(files), 3, size, size), dtype=np.uint8)

    def decode(place: int) -> None:
        pixels[place] = _decoded(Image, files[place], size, round(resize * size))

    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(decode, range(len(files))):
            pass
    return Images(
        torch.from_numpy(pixels),
        torch.tensor(labels, dtype=torch.int64),
        mean,
        std,
        classes=tuple(names),
        name=name or root.name,
    )


def imagenet(
    folder: str | Path | None = None,
    *,
    train: bool = True,
    size: int = 64,
    per_class: int | None = None,
    classes: Sequence[str] | None = None,
    max_gigabytes: float = 16.0,
    workers: int = 8,
) -> Images:
    """Reads ImageNet from a folder with ``train`` and ``val``, each with a folder for each class.

    All 1,281,167 training images take 15.7 GB at 64 pixels and 193 GB at 224: for those, take some of the
    classes or images, or a loader that decodes on the way. Test images are resized to 256 / 224 of their size
    before the middle is cut out.

    Args:
        folder: Where ``train`` and ``val`` are; by default ``imagenet`` in the folder of data sets.
        train: The training images, otherwise the validation images.
        size: See `image_folder`, as for all others.
        per_class: At most so many of each class.
        classes: Only these folders.
        max_gigabytes: Limit of memory.
        workers: Threads.

    Raises:
        FileNotFoundError: If the folder is missing.
        DataError: As `image_folder`.
    """
    split = "train" if train else "val"
    places = [place / split for place in places_in(folder, "imagenet", "ImageNet", "ILSVRC2012")]
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        raise FileNotFoundError(
            f"'{places[-1]}' is missing: expected a folder for each class of ImageNet in it."
        )
    return image_folder(
        found,
        size=size,
        resize=1.0 if train else 256 / 224,
        per_class=per_class,
        classes=classes,
        mean=_MEAN,
        std=_STD,
        name=f"ImageNet at {size} pixels",
        max_gigabytes=max_gigabytes,
        workers=workers,
    )


def _listed(root: Path, names: list[str], per_class: int | None) -> tuple[list[Path], list[int]]:
    if not names:
        raise DataError(f"'{root}' has no folders: expected a folder of images for each class.")
    files: list[Path] = []
    labels: list[int] = []
    limit = None if per_class is None else count("per_class", per_class, 1)
    for label, name in enumerate(names):
        if not (root / name).is_dir():
            raise FileNotFoundError(f"'{root / name}' is missing: expected a folder of images.")
        found = sorted(path for path in (root / name).iterdir() if path.suffix.lower() in _ENDINGS)[:limit]
        if not found:
            raise DataError(f"'{root / name}' has no images ({', '.join(_ENDINGS)}).")
        files += found
        labels += [label] * len(found)
    return files, labels


def _decoded(library: Any, path: Path, size: int, shorter: int) -> np.ndarray:
    try:
        with library.open(path) as opened:
            opened.draft("RGB", (2 * shorter, 2 * shorter))  # a JPEG need not be decoded in full
            image = opened.convert("RGB")
    except Exception as error:  # a damaged file makes pillow raise nearly anything
        raise DataError(
            f"{path} cannot be decoded ({type(error).__name__}: {error}). Fetch it again."
        ) from error
    scale = shorter / min(image.size)
    width, height = (max(shorter, round(side * scale)) for side in image.size)
    if (width, height) != image.size:
        image = image.resize((width, height), library.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size))).transpose(2, 0, 1)
