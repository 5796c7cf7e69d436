"""A network with a variance shift, data for it, and a short training."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset


class Sick(nn.Module):
    """Dropout in front of batch norms: trained, it has a variance shift."""

    def __init__(self, rate=0.5):
        super().__init__()
        layers = []
        for size in (8, 32, 32):
            layers += [nn.Linear(size, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(rate)]
        self.layers = nn.Sequential(*layers[:-1])
        self.head = nn.Linear(32, 4)

    def forward(self, x):
        return self.head(self.layers(x))


def data():
    """Batches of numbers whose classes are learnable; always the same ones."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(768, 8, generator=generator).exp()
    y = (x[:, 0] > x[:, 1]).long() + 2 * (x[:, 2] > x[:, 3]).long()
    return DataLoader(TensorDataset(x, y), 64)


def trained(network, epochs=8):
    """The network after a short training, with its optimiser."""
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    network.train()
    for _ in range(epochs):
        for x, y in data():
            optimizer.zero_grad()
            F.cross_entropy(network(x), y).backward()
            optimizer.step()
    return network, optimizer
