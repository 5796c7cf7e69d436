"""Norms that training leaves alone whatever mode they are in."""

import pytest
import torch
from torch import nn

import varshift as vs
from varshift.nn import FrozenBatchNorm


@pytest.mark.parametrize(("norm", "codes"), [(FrozenBatchNorm, []), (nn.BatchNorm1d, ["VS402"])])
def test_a_norm_that_is_frozen_by_its_class_is_not_woken_by_train(norm, codes):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Sequential(nn.Linear(4, 8), norm(8)).requires_grad_(False), nn.Linear(8, 2))
    net[0][1].eval()
    optimizer, found = torch.optim.SGD(net[1].parameters(), lr=0.1), []
    with vs.watch(net, optimizer=optimizer, on_finding=found.append) as watch:
        for _ in range(6):
            net.train()
            optimizer.zero_grad()
            net(torch.randn(16, 4)).square().mean().backward()
            optimizer.step()
            watch.step()
    assert [finding.code for finding in found] == codes
