from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from exported_flows import captured_by
from torch import nn

from varshift._sites import Source
from varshift.flow import Capture


@pytest.fixture(scope="session")
def line_of() -> Callable[[Any, str], Source]:
    """Finds the line of a class or function that carries a marker comment."""

    def find(owner: Any, marker: str) -> Source:
        lines, first = inspect.getsourcelines(owner)
        found = [first + i for i, line in enumerate(lines) if line.rstrip().endswith(f"# {marker}")]
        assert len(found) == 1
        return Source(str(inspect.getsourcefile(owner)), found[0])

    return find


@pytest.fixture(scope="session")
def captured() -> Callable[..., Capture]:
    """Captures a model on random inputs of the given shape."""

    def run(model: nn.Module, *shape: int, method: str = "recorded") -> Capture:
        return captured_by(method, model, torch.rand(shape))

    return run
