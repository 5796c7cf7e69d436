"""Versions of what a network is made of."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from torch import nn


def versions_of(network: nn.Module) -> tuple[tuple[str, str], ...]:
    """Versions of varshift, torch and the installed packages that the network's modules come from."""
    packages = {type(module).__module__.partition(".")[0] for module in network.modules()}
    versions = []
    for package in sorted(packages | {"varshift", "torch"}):
        try:
            versions.append((package, version(package)))
        except PackageNotFoundError:  # the user's own code
            continue
    return tuple(versions)
