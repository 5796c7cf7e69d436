"""A small network whose calls of noise are rewritten."""

import torch
import torch.nn.functional as F
from torch import nn

from varshift.fixes import NoiseAction, RewriteCall, Surgery, call_chain
from varshift.flow import capture

FILE = __file__
X = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
REMOVE = NoiseAction("remove")
DROPPED = NoiseAction("dropout", 0.9)
UNIFORM = NoiseAction("uniform", 0.1)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x):
        x = F.dropout(self.layer(x), 0.5, self.training) + F.dropout(x, 0.25, self.training)
        return F.dropout(x, 0.125, self.training)


class Stack(nn.Module):
    def __init__(self, depth=4):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(depth))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def rates(network, x=X):
    return [site.rate for site in capture(network, x).train.noises]


def rewritten(network, action, rate=None, x=X, surgery=None, always=False):
    """Rewrites the calls of a rate, or of all."""
    surgery = surgery or Surgery(network)
    done = set()
    for site in capture(network, x).train.noises:
        if rate is None or site.rate == rate:
            path, chain = call_chain(network, site)[0]
            if (path, chain) not in done:
                done.add((path, chain))
                RewriteCall(site.id, path, chain, action, always).apply(surgery)
    assert done
    return surgery


def in_training(network, x=X):
    torch.manual_seed(3)
    return network.train()(x)
