"""CIFAR-10 and CIFAR-100, from the standard archives or from losslessly compressed arrays."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from varshift import DataError
from varshift_lab.data._files import first_file, members, places_in, reading, unpickle, verify
from varshift_lab.data._images import Images

# Channel means and deviations of the training pixels over 255; of CIFAR-100, of the first 100 of each class.
_MOMENTS = {
    10: ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    100: ((0.5062, 0.4861, 0.4415), (0.2676, 0.2561, 0.2760)),
}
_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
# md5 of the files of the standard archives, sha256 of the pixels of the compressed arrays.
_CHECKSUMS = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
    "train": "16019d7e3df5f24257cddd939b257f8d",
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "data_batch_1.npz": "a50e8b48728e1667d682a807155c375279d5ae321fb12242c02e3104a6bc8b21",
    "data_batch_2.npz": "0b825e5592c3b72ea18d6ec2ff5f5b19d33e41a75f5039054a9bb87be3cf69a0",
    "data_batch_3.npz": "c6ee1dd4601a69ec085d8ebf53ee6441775491a6839a0a9ae8fa198e88a3a429",
    "data_batch_4.npz": "1f6b6c799cff375a9f8fae2fac909d51ee09f38a6a60eebb9e8fec6f47ddc48f",
    "data_batch_5.npz": "58e3bbf713e28357476a351d3a05d056372f94c681d04ca9d62a076fdf2a643b",
    "test_batch.npz": "177777c33ba79825320efa646ad04a94bdc3c80e4ebe3bd21724f8cdfd4b9d56",
    "train_100_per_class.npz": "4e93bf40cced26dd5c5a26ad3bc70d4e1b6c179f98aaf16a07a32321e834f704",
    "test_25_per_class.npz": "64c73b2312b76dc51f4a56e508210519208198b0bc9b8e6130b11c79e25c5d36",
}


@dataclass(frozen=True, slots=True)
class _Part:
    """One file of a set: where it is, and its content if it came out of an archive."""

    path: Path
    content: bytes | None = None


def cifar10(
    folder: str | Path | None = None, *, train: bool = True, batches: int = 5, verify: bool = True
) -> Images:
    """Reads CIFAR-10: ``(N, 3, 32, 32)``, 50,000 images to train on and 10,000 to test with.

    Understood are ``data_batch_1.npz`` and so on, the extracted ``cifar-10-batches-py``, and
    ``cifar-10-python.tar.gz``, in the folder or in its ``cifar10``. Pickles are read without running code.

    Args:
        folder: Where the files are, or the archive itself; by default the folder of data sets.
        train: The training images, otherwise the 10,000 test images.
        batches: How many of the five training files of 10,000 images to read.
        verify: Compare checksums with those of the original.

    Raises:
        FileNotFoundError: If a file is missing.
        DataError: If a file is damaged.
        ValueError: If `batches` is out of range.
    """
    if batches not in range(1, 6):
        raise ValueError(f"batches={batches!r}: CIFAR-10 has 1 to 5 training files.")
    names = [f"data_batch_{number}" for number in range(1, batches + 1)] if train else ["test_batch"]
    places = places_in(folder, "cifar10", "cifar-10-batches-py")
    parts = _parts(places, names, [f"{name}.npz" for name in names], "cifar-10-python.tar.gz", "CIFAR-10")
    pixels, labels = _read_all(parts, "labels", 10, verify)
    return Images(pixels, labels, *_MOMENTS[10], classes=_CLASSES, name="CIFAR-10")


def cifar100(
    folder: str | Path | None = None, *, train: bool = True, coarse: bool = False, verify: bool = True
) -> Images:
    """Reads CIFAR-100, or the subset of it with 100 (25) images per class where that is all there is.

    Understood are the extracted ``cifar-100-python``, ``cifar-100-python.tar.gz``, and
    ``train_100_per_class.npz`` with ``test_25_per_class.npz``, in the folder or in its ``cifar100`` or
    ``cifar100_subset``. The name of the images says which of them it was: results on the subset are not
    comparable with those on the whole.

    Args:
        folder: Where the files are, or the archive itself; by default the folder of data sets.
        train: The training images, otherwise the test images.
        coarse: The 20 superclasses in place of the 100 classes.
        verify: Compare checksums with those of the original.

    Raises:
        FileNotFoundError: If a file is missing.
        DataError: If a file is damaged.
    """
    split, stored = ("train", "train_100_per_class.npz") if train else ("test", "test_25_per_class.npz")
    places = places_in(folder, "cifar100", "cifar-100-python", "cifar100_subset")
    parts = _parts(places, [split], [stored], "cifar-100-python.tar.gz", "CIFAR-100")
    key, count = ("coarse_labels", 20) if coarse else ("fine_labels", 100)
    pixels, labels = _read_all(parts, key, count, verify)
    name = "CIFAR-100"
    if parts[0].path.suffix == ".npz":
        name = f"CIFAR-100 subset, {'100 train' if train else '25 test'} images per class"
    classes = _cifar100_classes(parts[0].path, places, "coarse" if coarse else "fine", count)
    return Images(pixels, labels, *_MOMENTS[100], classes=classes, name=name)


def _parts(places: list[Path], names: list[str], stored: list[str], archive: str, title: str) -> list[_Part]:
    """The files of a set, in the first form that is complete."""
    for wanted in (names, stored):
        found = [first_file(places, [name]) for name in wanted]
        if all(found):
            return [_Part(path) for path in found if path is not None]
    if places[0].is_file() and places[0].name != archive:
        packed: Path | None = places[0]  # an archive under a name of the user's
    else:
        packed = first_file(places, [archive])
    if packed is not None:
        with reading(packed):
            contents = members(packed, names)
        missing = [name for name in names if name not in contents]
        if missing:
            raise DataError(f"{packed} does not hold {', '.join(missing)}: it is not the archive of {title}.")
        return [_Part(packed / name, contents[name]) for name in names]
    here = [any((place / name).is_file() for place in places) for name in stored]
    first = stored[here.index(False)] if not all(here) else stored[0]
    raise FileNotFoundError(
        f"{first} is missing: expected the files of {title}, its extracted archive or {archive} in "
        f"'{places[0]}'."
    )


def _read_all(parts: list[_Part], key: str, classes: int, check: bool) -> tuple[Tensor, Tensor]:
    # Decompression and hashing leave Python to other threads.
    with ThreadPoolExecutor(min(len(parts), 8)) as pool:
        read = list(pool.map(lambda part: _read(part, key, classes, check), parts))
    pixels = np.concatenate([pixels for pixels, _ in read]) if len(read) > 1 else read[0][0]
    return torch.from_numpy(pixels), torch.from_numpy(np.concatenate([labels for _, labels in read]))


def _read(part: _Part, key: str, classes: int, check: bool) -> tuple[np.ndarray, np.ndarray]:
    path = part.path
    with reading(path):
        if path.suffix == ".npz":
            pixels, labels = _from_differences(path, key)
            verify(path, pixels, _CHECKSUMS.get(path.name) if check else None)
        else:
            content = path.read_bytes() if part.content is None else part.content
            verify(path, content, _CHECKSUMS.get(path.name) if check else None)
            found = unpickle(content)
            pixels, labels = _values(found["data"]), np.asarray(found[key])
        labels = labels.astype(np.int64, casting="safe")
    if labels.shape != pixels.shape[:1] or (len(labels) and not 0 <= labels.min() <= labels.max() < classes):
        raise DataError(
            f"{path} holds {len(pixels)} images and {labels.size} labels, which must be as many and in 0 to "
            f"{classes - 1}: it is damaged. Fetch it again."
        )
    return pixels, labels


def _values(data: Any) -> np.ndarray:
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (3072,):
        raise ValueError("its data are not uint8 of 3,072 values for each image")
    return data.reshape(-1, 3, 32, 32).copy()  # a copy that may be written to


def _from_differences(path: Path, key: str) -> tuple[np.ndarray, np.ndarray]:
    with np.load(path, allow_pickle=False) as stored:
        residual = stored["residual"]
        if residual.dtype != np.uint8 or residual.ndim != 4 or residual.shape[0] != 3:
            raise ValueError("its residual is not uint8 (3, N, 32, 32)")
        # Stored are horizontal and vertical differences of the planes R-G, G, B-G, all modulo 256.
        planes = residual.cumsum(axis=2, dtype=np.uint8).cumsum(axis=3, dtype=np.uint8)
        planes[0] += planes[1]
        planes[2] += planes[1]
        labels = stored[key]
    return np.ascontiguousarray(planes.transpose(1, 0, 2, 3)), labels


def _cifar100_classes(source: Path, places: list[Path], kind: str, count: int) -> tuple[str, ...]:
    """The names in the file ``meta`` beside the images, or in ``class_names.json``; none without them."""
    import json

    names: list[Any] = []
    listed = first_file([*places, places[0].parent], ["class_names.json"])
    if source.parent.is_file():  # an archive
        meta: bytes | None = members(source.parent, ["meta"]).get("meta")
    else:
        beside = source.parent / "meta"
        meta = beside.read_bytes() if beside.is_file() else None
    if meta is not None:
        with reading(source.parent / "meta"):
            names = list(unpickle(meta)[f"{kind}_label_names"])
    elif listed is not None:
        with reading(listed):
            names = json.loads(listed.read_text()).get(f"cifar100_{kind}", [])
    texts = tuple(name.decode() if isinstance(name, bytes) else str(name) for name in names)
    return texts if len(texts) == count else ()
