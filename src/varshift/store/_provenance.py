"""What a trial ran on."""

from __future__ import annotations

import os
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def provenance(device: str, precision: str = "32-true", compiled: bool = False) -> dict[str, Any]:
    """Device, versions, threads and date, for the results of a trial that ran in this process."""
    found: dict[str, Any] = {"device": device_name(device)}
    for package in ("torch", "varshift"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a folder that was never installed
            found[package] = "unknown"
    torch = sys.modules.get("torch")
    if torch is not None:
        found["torch"] = str(torch.__version__)
    found["python"] = platform.python_version()
    found["threads"] = torch.get_num_threads() if torch is not None else os.cpu_count() or 1
    found["precision"] = precision
    found["compiled"] = compiled
    found["date"] = datetime.now(UTC).date().isoformat()
    return found


def device_name(device: str) -> str:
    """The maker's name of a device, such as ``NVIDIA H100``; of a processor, its model."""
    kind, _, index = device.partition(":")
    torch = sys.modules.get("torch")
    if kind == "cuda" and torch is not None and torch.cuda.is_available():
        return torch.cuda.get_device_name(int(index) if index else torch.cuda.current_device())
    return _processor() if kind == "cpu" else device


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() == "model name" and value.strip() not in ("", "unknown"):
            return value.strip()
    return platform.processor() or platform.machine()
