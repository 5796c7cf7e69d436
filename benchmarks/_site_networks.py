"""The networks whose noise sites are tried: those of the survey, of torchvision one of each family."""

from __future__ import annotations

import importlib

from _surveyed import installed
from _surveyed_calls import call_networks
from _surveyed_network import Network
from _surveyed_others import others
from _surveyed_zoo import timm_networks, torchvision_networks
from varshift.integrations import declare_torchvision_operators


def networks() -> list[Network]:
    """All networks, timm's families first."""
    declare_torchvision_operators()
    return [*timm_networks(), *_families(torchvision_networks()), *others(), *call_networks()]


def _families(zoo: list[Network]) -> list[Network]:
    """The smallest network of every module of torchvision."""
    if not installed("torchvision"):
        return zoo
    models = importlib.import_module("torchvision.models")
    families: dict[str, Network] = {}
    for network in zoo:  # the smallest first
        builder = models.get_model_builder(network.name.partition("/")[2])
        families.setdefault(builder.__module__, network)
    return list(families.values())
