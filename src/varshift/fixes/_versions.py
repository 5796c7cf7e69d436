"""Versions of what a network is made of."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version

from torch import nn


def versions_of(network: nn.Module) -> tuple[tuple[str, str], ...]:
    """Versions of varshift, torch and the installed packages that the network's modules come from."""
    packages = {type(module).__module__.partition(".")[0] for module in network.modules()}
    versions = ((package, _version(package)) for package in sorted(packages | {"varshift", "torch"}))
    return tuple((package, number) for package, number in versions if number is not None)


@cache
def _version(package: str) -> str | None:
    """The version of an installed package; None for the user's own code."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
