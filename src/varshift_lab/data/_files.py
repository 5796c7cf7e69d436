"""Finding and reading the files of data sets: folders, archives, checksums, and pickles that run no code."""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import io
import lzma
import os
import pickle
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from varshift import DataError

_VARIABLE = "VARSHIFT_DATA"
# What numpy pickles an array with, wherever this version of numpy keeps it.
_RECONSTRUCT = np.empty(0).__reduce__()[0]
_DAMAGE = (EOFError, tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, pickle.UnpicklingError)


def data_folder() -> Path:
    """The folder of data sets: ``VARSHIFT_DATA``, or ``shared/data`` beside the checkout.

    Raises:
        FileNotFoundError: If there is none.
    """
    named = os.environ.get(_VARIABLE)
    if named:
        places = [Path(named)]
    else:
        beside = Path("shared") / "data"
        places = [Path(__file__).resolve().parents[4] / beside, Path.cwd().parent / beside]
    for place in places:
        if place.is_dir():
            return place
    looked = " and ".join(f"'{place}'" for place in places)
    raise FileNotFoundError(
        f"no folder of data sets: {looked} is missing. Set {_VARIABLE} to it, or pass folder=."
    )


def places_in(folder: str | Path | None, *subfolders: str) -> list[Path]:
    """Where the files of a data set may be: the folder itself, and its subfolders that exist."""
    root = data_folder() if folder is None else Path(folder)
    return [root, *(root / name for name in subfolders if (root / name).is_dir())]


def first_file(places: Iterable[Path], names: Iterable[str]) -> Path | None:
    """The first of these names that is there; a place that is a file itself counts by its own name."""
    wanted = list(names)
    for place in places:
        if place.is_file() and place.name in wanted:
            return place
        found = next((place / name for name in wanted if (place / name).is_file()), None)
        if found is not None:
            return found
    return None


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Says which file is damaged when reading it fails."""
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError:
        raise
    except (*_DAMAGE, OSError, KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise DataError(
            f"{path} cannot be read ({type(error).__name__}: {first}): it is damaged or of another format. "
            "Fetch it again."
        ) from error


def verify(path: Path, content: bytes | np.ndarray, expected: str | None) -> None:
    """Compares a checksum: md5 where 32 digits are expected, sha256 where 64.

    Raises:
        DataError: If it differs.
    """
    if expected is None:
        return
    method = hashlib.md5 if len(expected) == 32 else hashlib.sha256
    found = method(np.ascontiguousarray(content).data if isinstance(content, np.ndarray) else content)
    if found.hexdigest() != expected:
        raise DataError(
            f"{path} has the {found.name} checksum {found.hexdigest()} and not {expected}: it is damaged or "
            "another set. Fetch it again, or pass verify=False for a file of your own."
        )


class _ArrayUnpickler(pickle.Unpickler):
    """Reads dicts, lists, strings, bytes and numpy arrays, and refuses everything else."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        if module_name in ("numpy.core.multiarray", "numpy._core.multiarray"):
            if global_name == "_reconstruct":
                return _RECONSTRUCT
        elif module_name in ("numpy.core.numeric", "numpy._core.numeric"):
            if global_name == "_frombuffer":
                return _from_buffer
        elif module_name == "numpy" and global_name in ("ndarray", "dtype"):
            return getattr(np, global_name)
        elif (module_name, global_name) == ("_codecs", "encode"):
            return _encode  # how bytes are written by the older protocols
        raise pickle.UnpicklingError(
            f"it asks for {module_name}.{global_name}, and only arrays, bytes and dicts are read"
        )


def _from_buffer(values: bytes, dtype: np.dtype, shape: tuple[int, ...], order: Literal["C", "F"]) -> Any:
    return np.frombuffer(values, dtype=dtype).reshape(shape, order=order)


def _encode(text: str, encoding: str = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError("it holds bytes in an unknown encoding")
    return codecs.encode(text, "latin1")


def unpickle(content: bytes) -> dict[str, Any]:
    """A pickled dict of arrays and plain values, with keys as text; no code of the pickle runs."""
    found = _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
    if not isinstance(found, dict):
        raise pickle.UnpicklingError(f"it holds a {type(found).__name__} and not a dict")
    return {key.decode() if isinstance(key, bytes) else str(key): value for key, value in found.items()}


def members(archive: Path, names: Iterable[str]) -> dict[str, bytes]:
    """Contents of the files of a tar archive that have these names, in any of its folders."""
    wanted, found = set(names), {}
    with tarfile.open(archive, "r:*") as opened:
        for entry in opened:
            name = entry.name.rsplit("/", 1)[-1]
            handle = opened.extractfile(entry) if entry.isfile() and name in wanted else None
            if handle is not None and name not in found:
                found[name] = handle.read()
    return found
