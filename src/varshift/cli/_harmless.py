"""Classes that a checkpoint may hold besides tensors, for reading them does nothing."""

from __future__ import annotations

import argparse
import collections
import datetime
import os
import pathlib
import types
import typing
from importlib.util import find_spec
from typing import Any

import numpy as np


def harmless_classes() -> list[Any]:
    """What `torch.serialization.safe_globals` takes: plain containers, paths, dates, NumPy, OmegaConf.

    Making one of them from any arguments, or giving it any attributes, runs no code but its own.
    """
    plain = [
        argparse.Namespace,
        types.SimpleNamespace,
        collections.OrderedDict,
        collections.Counter,
        collections.deque,
        datetime.date,
        datetime.datetime,
        datetime.timedelta,
        datetime.timezone,
    ]
    return [*plain, *_paths(), *_numpy(), *_omegaconf()]


def _paths() -> list[Any]:
    """Paths under the names of all versions of Python; those of the other system as pure paths."""
    posix = pathlib.PurePosixPath if os.name == "nt" else pathlib.PosixPath
    windows = pathlib.WindowsPath if os.name == "nt" else pathlib.PureWindowsPath
    kinds = {
        "PosixPath": posix,
        "WindowsPath": windows,
        "PurePosixPath": pathlib.PurePosixPath,
        "PureWindowsPath": pathlib.PureWindowsPath,
    }
    return [
        (kind, f"{module}.{name}") for module in ("pathlib", "pathlib._local") for name, kind in kinds.items()
    ]


def _numpy() -> list[Any]:
    """Scalars and arrays, under the names of all versions of NumPy."""
    scalar, reconstruct = np.float64(0).__reduce__()[0], np.zeros(0).__reduce__()[0]
    assert callable(scalar)
    assert callable(reconstruct)
    functions = [
        (function, f"numpy.{core}.multiarray.{name}")
        for core in ("core", "_core")
        for function, name in ((scalar, "scalar"), (reconstruct, "_reconstruct"))
    ]
    kinds = {type(np.dtype(code)) for code in np.typecodes["All"]}
    return [np.ndarray, np.dtype, *kinds, *functions]


def _omegaconf() -> list[Any]:
    if find_spec("omegaconf") is None:
        return []
    from omegaconf import base, dictconfig, listconfig, nodes

    values = [kind for name, kind in vars(nodes).items() if name.endswith("Node") and isinstance(kind, type)]
    containers = [dictconfig.DictConfig, listconfig.ListConfig, base.ContainerMetadata, base.Metadata]
    plain = [collections.defaultdict, dict, list, int, float, str, bool]
    return [*containers, *values, (typing.Any, "typing.Any"), *plain]
