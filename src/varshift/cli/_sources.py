"""What a verb takes in: places and files, looked at before torch is imported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from varshift._errors import VarshiftError
from varshift.cli._objects import check_place, suggestion

# What Hugging Face and torch call the weights in a folder, in the order in which they are looked for.
_IN_FOLDERS = ("model.safetensors", "pytorch_model.bin", "diffusion_pytorch_model.safetensors")


@dataclass(frozen=True)
class Weights:
    """Where the weights of a network come from, and how they are read.

    Attributes:
        file: The file, None for the weights that the network is built with.
        key: Where in the file the state dict lies, found by itself when None.
        prefix: What the keys of the network begin with in the file; the usual ones are found when None.
        strict: Whether keys that the network does not have are an error.
        trust: Whether a file with pickled objects is read, which can run any code.
    """

    file: Path | None = None
    key: str | None = None
    prefix: str | None = None
    strict: bool = False
    trust: bool = False


def check_sources(target: str, weights: Weights | None = None, **places: str | None) -> None:
    """Makes sure, before torch is imported, that a target, its weights and other files are there.

    Args:
        target: The network.
        weights: Its weights.
        places: For the name of each option ``module:name`` or ``file.py:name``, or None.

    Raises:
        VarshiftError: If a file or module is not there, a text names no object, or an option needs another.
    """
    zoo, _, name = target.partition(":")
    if zoo not in ("timm", "torchvision") or not name:
        check_place(target, "target")
    if weights is not None:
        _check_weights(weights)
    for option, text in places.items():
        if text is not None:  # the target's file may extend the module path
            check_place(text, f"--{option.replace('_', '-')}", modules=False)


def weights_file(path: Path, option: str = "--weights") -> Path:
    """The file that a path names, or the one with the weights in the folder that it names.

    Raises:
        VarshiftError: If there is none.
    """
    if path.is_file():
        return path
    if path.is_dir():
        for name in _IN_FOLDERS:
            if (path / name).is_file():
                return path / name
        raise VarshiftError(
            f"{option}: {str(path)!r} is a folder without {' or '.join(_IN_FOLDERS[:2])}: "
            "name the file in it."
        )
    known = [str(item) for item in path.parent.glob("*")] if path.parent.is_dir() else []
    raise VarshiftError(f"{option}: there is no file {str(path)!r}{suggestion(str(path), known)}")


def _check_weights(weights: Weights) -> None:
    if weights.file is not None:
        weights_file(weights.file)
        return
    for name, given in (
        ("--weights-key", weights.key is not None),
        ("--prefix", weights.prefix is not None),
        ("--strict", weights.strict),
    ):
        if given:
            raise VarshiftError(f"{name}: there is no file to look in: give --weights too.")
