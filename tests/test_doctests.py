"""Every example in the docstrings of the parts runs and prints what it says."""

import doctest
import importlib
import pkgutil

import pytest
import torch

import varshift

ROOMS = ("functional", "nn", "optim", "data")


def modules():
    for room in ROOMS:
        package = importlib.import_module(f"varshift.{room}")
        for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            yield found.name


@pytest.mark.parametrize("name", list(modules()))
def test_examples_run(name):
    torch.manual_seed(0)
    module = importlib.import_module(name)
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_part_has_an_example(room):
    package = getattr(varshift, room)
    public = [getattr(package, name) for name in dir(package) if not name.startswith("_")]
    parts = [part for part in public if getattr(part, "__module__", "").startswith(package.__name__ + ".")]
    missing = [part.__name__ for part in parts if ">>>" not in (part.__doc__ or "")]
    assert not missing
