import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

PROJECT = Path(__file__).parents[2] / "pyproject.toml"


def declared_hosts():
    table = tomllib.loads(PROJECT.read_text())["project"]["entry-points"]["varshift.hosts"]
    return [EntryPoint(name, value, "varshift.hosts") for name, value in table.items()]


@pytest.fixture
def hosts(monkeypatch):
    """The hosts as the project declares them, whatever was installed before they were."""
    monkeypatch.setattr("varshift.monitor._watch.entry_points", lambda group: declared_hosts())


@pytest.fixture
def make_net():
    def make(seed=0):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))

    return make


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(96, 4, generator=generator)
    return TensorDataset(x, (x[:, 0] + 0.3 * x[:, 1] > 0).long())


@pytest.fixture
def loader(data):
    return DataLoader(data, batch_size=16)
