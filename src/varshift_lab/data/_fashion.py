"""Fashion-MNIST, from the standard idx files or from compressed arrays."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import torch

from varshift import DataError
from varshift_lab.data._files import first_file, places_in, reading
from varshift_lab.data._files import verify as verify_checksum
from varshift_lab.data._images import Images

_MEAN, _STD = (0.2860406,), (0.3530242,)  # of the training pixels over 255
_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
# sha256 of the pixels, whatever file they were in, and md5 of the labels' gzip files.
_PIXELS = {
    True: "2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012",
    False: "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a",
}
_LABELS = {True: "25c81989df183df01b3e8a0aad5dffbe", False: "bb300cfdad3c16e7a12a480ee83cd310"}


def fashion_mnist(folder: str | Path | None = None, *, train: bool = True, verify: bool = True) -> Images:
    """Reads Fashion-MNIST: ``(N, 1, 28, 28)``, 60,000 images to train on and 10,000 to test with.

    Understood are ``train-images-idx3-ubyte`` and its three companions, plain or as ``.gz``, and
    ``train.npz`` with ``test.npz``, in the folder or in its ``fashion_mnist``, ``fashion-mnist``,
    ``FashionMNIST`` or ``FashionMNIST/raw``.

    Args:
        folder: Where the files are; by default the folder of data sets.
        train: The training images, otherwise the test images.
        verify: Compare checksums with those of the original.

    Raises:
        FileNotFoundError: If a file is missing.
        DataError: If a file is damaged.
    """
    places = places_in(folder, "fashion_mnist", "fashion-mnist", "FashionMNIST", "FashionMNIST/raw")
    prefix = "train" if train else "t10k"
    files = [
        first_file(
            places, [f"{prefix}-{kind}{join}{form}-ubyte{end}" for join in "-." for end in ("", ".gz")]
        )
        for kind, form in (("images", "idx3"), ("labels", "idx1"))
    ]
    stored = first_file(places, [f"{'train' if train else 'test'}.npz"])
    if files[0] is not None and files[1] is not None:
        source = files[0]
        pixels, labels = _idx(files[0], 3), _idx(files[1], 1)
        if verify and files[1].suffix == ".gz":
            verify_checksum(files[1], files[1].read_bytes(), _LABELS[train])
    elif stored is not None:
        source = stored
        with reading(stored), np.load(stored, allow_pickle=False) as opened:
            # Rows and columns are stored swapped.
            pixels = np.ascontiguousarray(opened["images_t"].transpose(0, 2, 1))
            labels = opened["labels"].copy()
    else:
        raise FileNotFoundError(
            f"{prefix}-images-idx3-ubyte.gz is missing: expected the idx files of Fashion-MNIST in "
            f"'{places[0]}'."
        )
    if pixels.dtype != np.uint8 or pixels.shape != (len(labels), 28, 28) or (labels > 9).any():
        raise DataError(
            f"{source} holds {pixels.dtype} of shape {pixels.shape} and {len(labels)} labels: expected uint8 "
            "(N, 28, 28) and N labels in 0 to 9. Fetch it again."
        )
    verify_checksum(source, pixels, _PIXELS[train] if verify else None)
    classes = torch.from_numpy(labels.astype(np.int64))
    return Images(
        torch.from_numpy(pixels)[:, None], classes, _MEAN, _STD, classes=_CLASSES, name="Fashion-MNIST"
    )


def _idx(path: Path, dimensions: int) -> np.ndarray:
    """Bytes in the idx format: magic number, sizes as big-endian words, values."""
    with reading(path):
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        header = 4 * (1 + dimensions)
        if len(content) < header or content[:4] != bytes((0, 0, 8, dimensions)):
            raise ValueError(f"it does not begin like bytes in {dimensions} dimensions")
        shape = np.frombuffer(content, ">u4", dimensions, 4).tolist()
        # A copy, since memory of bytes must not be written to.
        return np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy()
