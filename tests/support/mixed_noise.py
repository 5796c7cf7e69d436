"""A network whose noise is reached by each method of surgery: another module, an attribute, a call."""

import torch
from torch import nn
from torch.nn import functional as F

RATES = {"dropout": 0.2, "attention": 0.1, "literal": 0.3, "path": 0.25, "mask": 0.15}


def drop_samples(x, rate, training):
    if not training:
        return x
    keep = 1 - rate
    mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)
    return x * mask / keep


class Mixed(nn.Module):
    """Takes (samples, 4, 8) and gives (samples, 3); no batch statistics, so that halves of a batch add up."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(8, 16), nn.LayerNorm(16)
        self.drop = nn.Dropout(RATES["dropout"])
        self.attention_rate = RATES["attention"]
        self.mixed, self.last = nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x):
        x = self.drop(torch.tanh(self.norm(self.first(x))))
        rate = self.attention_rate if self.training else 0.0
        x = x + F.scaled_dot_product_attention(x, x, x, dropout_p=rate)
        x = x + drop_samples(self.mixed(x), 0.25, self.training)
        x = F.dropout(torch.tanh(x), 0.3, self.training)
        return self.last(self.masked(x).mean(1))

    def masked(self, x):
        if not self.training:
            return x
        mask = torch.bernoulli(torch.full_like(x, 0.85))
        return x * mask / 0.85


def mixed():
    """The network with weights that are always the same, and a batch."""
    torch.manual_seed(0)
    return Mixed(), torch.randn(8, 4, 8)


def train(network, batch, steps=2):
    """The losses of a few steps."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = network(batch).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses
