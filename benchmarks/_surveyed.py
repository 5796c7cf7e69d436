"""The networks that are surveyed: other libraries' own, built from configurations with random weights."""

from __future__ import annotations

import importlib.util

from _surveyed_calls import call_networks
from _surveyed_network import Network
from _surveyed_others import others
from _surveyed_zoo import timm_networks, torchvision_networks
from varshift.integrations import declare_torchvision_operators


def networks() -> list[Network]:
    """All networks, those of small libraries first, then timm's families and torchvision's in turn."""
    declare_torchvision_operators()
    families = _interleaved(timm_networks(), torchvision_networks())
    return [*others(), *call_networks(), *families]


def installed(library: str) -> bool:
    """Whether a package can be imported, without importing it."""
    return importlib.util.find_spec(library) is not None


def _interleaved(*groups: list[Network]) -> list[Network]:
    """Members of several lists, spread evenly, so that an unfinished survey has seen some of each."""
    ordered = [
        (index / len(group), number, network)
        for number, group in enumerate(groups)
        for index, network in enumerate(group)
    ]
    return [network for *_, network in sorted(ordered, key=lambda item: item[:2])]
