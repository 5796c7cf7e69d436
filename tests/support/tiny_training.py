"""A small classification for tests of comparisons; importable by worker processes."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def build() -> nn.Module:
    """A small network with dropout in front of a batch norm."""
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.5), nn.BatchNorm1d(16), nn.Linear(16, 3))


def samples(count: int, seed: int) -> TensorDataset:
    """Three noisy classes in eight dimensions."""
    draw = torch.Generator().manual_seed(seed)
    centres = torch.randn(3, 8, generator=torch.Generator().manual_seed(99))
    classes = torch.randint(0, 3, (count,), generator=draw)
    return TensorDataset(centres[classes] + torch.randn(count, 8, generator=draw), classes)


def loader() -> DataLoader:
    """Batches to train on, shuffled."""
    return DataLoader(samples(96, 0), 16, shuffle=True, drop_last=True)


def val_loader() -> DataLoader:
    """Batches to judge on."""
    return DataLoader(samples(200, 1), 100)


def train(network: nn.Module, batches: DataLoader, epochs: int = 2) -> None:
    """A training of the user's own."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(epochs):
        network.train()
        for inputs, classes in batches:
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(inputs), classes).backward()
            optimizer.step()


def wider(network: nn.Module) -> nn.Module:
    """A variant of the user's own."""
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))
