"""What noise does to the norms of a network, by running it many times on the same data."""

import copy

import torch
from torch import nn

DRAWS = 120


def norms(net):
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    return {name: module for name, module in net.named_modules() if isinstance(module, kinds)}


def channelwise(x):
    return x.transpose(0, 1).flatten(1) if x.dim() > 2 else x.T


def measured(net, data, draws=DRAWS):
    """Noise share, local ratio and ratio of every norm, by running the network."""
    net = copy.deepcopy(net)
    for norm in norms(net).values():
        norm.momentum = 0.0
    seen = {name: [] for name in norms(net)}
    for name, norm in norms(net).items():
        norm.register_forward_pre_hook(lambda _, args, into=seen[name]: into.append(args[0].detach()))
    inputs = data if isinstance(data, tuple) else (data,)

    def run():
        for values in seen.values():
            values.clear()
        with torch.no_grad():
            net(*inputs)
        return {name: channelwise(values[0]) for name, values in seen.items()}

    net.train()
    sums = {}
    for _ in range(draws):
        for name, x in run().items():
            old = sums.get(name, (0, 0))
            sums[name] = (old[0] + x, old[1] + x.square())
    found = {}
    for name, (first, second) in sums.items():
        given = first / draws
        noise = (second / draws - given.square()) * draws / (draws - 1)
        total = (second / draws).mean(1) - given.mean(1).square()
        found[name] = [given.mean(1), total, noise.mean(1)]
    net.eval()
    for norm in norms(net).values():
        norm.train()
    clean = {name: x.var(1, correction=0) for name, x in run().items()}
    net.eval()
    for name, norm in norms(net).items():
        norm.running_mean.copy_(found[name][0])
        norm.running_var.copy_(found[name][1])
    deployed = {name: x.var(1, correction=0) for name, x in run().items()}
    return {
        name: (
            float(noise.mean() / total.mean()),
            float(clean[name].mean() / total.mean()),
            float(deployed[name].mean() / total.mean()),
        )
        for name, (_, total, noise) in found.items()
    }
