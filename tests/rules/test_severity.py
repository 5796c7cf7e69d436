"""Severities of trained networks: the loss decides, and other seeds of the check agree."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import varshift as vs

Batches = list[tuple[Tensor, Tensor]]


@cache
def batches(classes: int = 6, features: int = 20, count: int = 16, size: int = 32) -> Batches:
    """Overlapping clusters: no network learns them by heart in a few epochs."""
    generator = torch.Generator().manual_seed(0)
    centres = 0.7 * torch.randn(classes, features, generator=generator)
    found: Batches = []
    for _ in range(count):
        targets = torch.randint(classes, (size,), generator=generator)
        inputs = centres[targets] + torch.randn(size, features, generator=generator)
        found.append((inputs, targets))
    return found


def perceptron(*between: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Linear(20, 32), *between, nn.BatchNorm1d(32), nn.ReLU()]
    layers += [nn.Linear(32, 32), *between, nn.BatchNorm1d(32), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(32, 6))


def convolutions(*between: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Unflatten(1, (1, 4, 5)), nn.Conv2d(1, 16, 3, padding=1), *between]
    layers += [nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(320, 6))


def trained(
    net: nn.Module, epochs: int = 8, eval_after: int | None = None, alpha: float = 0.0, rate: float = 3e-3
) -> nn.Module:
    """Trains; with `eval_after` the network is put in eval mode after that many steps and never put back."""
    optimizer = torch.optim.Adam(net.parameters(), rate)
    steps = 0
    net.train()
    for epoch in range(epochs):
        optimizer.param_groups[0]["lr"] = rate * (1 - epoch / epochs)
        for inputs, targets in batches():
            if steps == eval_after:
                net.eval()
            share = float(torch.distributions.Beta(alpha, alpha).sample()) if alpha else 1.0
            other = torch.randperm(len(inputs))
            outputs = net(share * inputs + (1 - share) * inputs[other])
            loss = share * F.cross_entropy(outputs, targets)
            loss = loss + (1 - share) * F.cross_entropy(outputs, targets[other])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps += 1
    return net


def forgotten_statistics(net: nn.Module) -> nn.Module:
    trained(net)
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
    return net


def early_statistics(net: nn.Module) -> nn.Module:
    """Weights of the end with the statistics of the first epoch."""
    trained(net, 1)
    early = {name: buffer.clone() for name, buffer in net.named_buffers()}
    trained(net)
    net.load_state_dict(early, strict=False)
    return net


CASES: dict[str, tuple[Callable[[], nn.Module], set[tuple[str, str]]]] = {
    "sound perceptron": (lambda: trained(perceptron()), set()),
    "sound convolutions": (lambda: trained(convolutions()), set()),
    "mixup": (lambda: trained(perceptron(), alpha=2.0), set()),
    "mixup, convolutions": (lambda: trained(convolutions(), alpha=1.0), set()),
    "eval mode since step 5": (lambda: trained(perceptron(), eval_after=5), {("VS210", "error")}),
    "eval mode since step 9": (lambda: trained(convolutions(), eval_after=9), {("VS210", "error")}),
    "forgotten statistics": (lambda: forgotten_statistics(convolutions()), {("VS201", "error")}),
    "early statistics": (lambda: early_statistics(perceptron()), {("VS202", "error")}),
    "dropout": (lambda: trained(perceptron(nn.Dropout(0.5))), {("VS101", "error")}),
    "forgotten weights": (perceptron, {("VS201", "warning")}),
}


@pytest.mark.parametrize("name", CASES)
def test_other_seeds_of_the_check_agree(name):
    build, expected = CASES[name]
    net = build()
    for seed in range(3):
        report = vs.check(net, batches(), seed=seed)
        grave = {(one.code, one.severity) for one in report.findings if one.severity != "advice"}
        assert grave == expected
        offered = [cure for one in report.findings for cure in one.cures if cure.code == "recalibrate"]
        cured = bool(expected) and expected not in ({("VS210", "error")}, {("VS201", "warning")})
        assert {cure.safety for cure in offered} == ({"safe"} if cured else set())
        assert all(cure.measured["after"] < cure.measured["before"] for cure in offered)
