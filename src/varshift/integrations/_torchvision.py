"""Lets torchvision, and what imports it, load next to a torch that its operator library does not fit."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import threading

import torch
from torch import library

# What torchvision's own Python files refer to while they are imported.
_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}

_lock = threading.Lock()
_declared: list[library.Library] = []


def declare_torchvision_operators() -> bool:
    """Declares the schemas of torchvision's ``nms`` and ``qnms`` when its operator library cannot be loaded.

    torchvision registers a shape function for ``torchvision::nms`` while it is imported. When its compiled
    library does not fit the installed torch (a CPU torch next to a CUDA torchvision, say), the library fails
    to load in silence, the operator has no schema, and ``import torchvision`` ends in "operator
    torchvision::nms does not exist"; ``import timm`` fails with it. Networks can be built, captured and
    measured without these operators, only box suppression needs them. With the two schemas declared the
    import succeeds, and a call of ``nms`` still fails, as it should: no kernel is provided.

    It does nothing when torchvision is absent, when its operators are there already, or when its library
    loads (trying to load it is how this is found out, and is what torchvision would do next). It may be
    called any number of times and before or after a failed import. varshift never calls it on import.

    Returns:
        True when schemas stand declared by this function, now or by an earlier call; else False.
    """
    with _lock:
        if _declared:
            return True
        if not _installed() or not _missing() or _loads():
            return False
        for name in _missing():
            library = _library()
            library.define(_SCHEMAS[name])
            _declared.append(library)  # a Library that is collected takes its declarations with it
        return True


def _installed() -> bool:
    try:
        return importlib.util.find_spec("torchvision") is not None
    except (ImportError, ValueError):
        return False


def _missing() -> list[str]:
    return [name for name in _SCHEMAS if not hasattr(torch.ops.torchvision, name)]


def _loads() -> bool:
    """Whether the compiled library loads, found as torchvision finds it: ``_C`` beside its own files."""
    spec = importlib.util.find_spec("torchvision")
    finder = (importlib.machinery.ExtensionFileLoader, importlib.machinery.EXTENSION_SUFFIXES)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        extension = importlib.machinery.FileFinder(folder, finder).find_spec("_C")
        if extension is None or extension.origin is None:
            continue
        try:
            torch.ops.load_library(extension.origin)
        except (ImportError, OSError, RuntimeError):
            continue
        return not _missing()
    return False


def _library() -> library.Library:
    try:
        return library.Library("torchvision", "DEF")
    except RuntimeError:  # the namespace is taken: somebody else declared a part of it
        return library.Library("torchvision", "FRAGMENT")
