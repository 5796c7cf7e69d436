"""Statistics of several networks pooled by Chan's rule, against moments of all the data in float64."""

from __future__ import annotations

import copy
import doctest

import pytest
import torch
from torch import Tensor, nn

import varshift as vs
from varshift.probe import _merge_statistics

SIZES = [40, 9, 300]


def parts() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        (1 + n) * torch.randn(size, 5, generator=generator, dtype=torch.float64) + 3 * n
        for n, size in enumerate(SIZES)
    ]


def networks(dtype=torch.float64) -> list[nn.Module]:
    """A norm each that holds the moments of one part, as a running average over one batch does."""
    nets = []
    for part in parts():
        net = nn.Sequential(nn.Identity(), nn.BatchNorm1d(5, momentum=1.0)).to(dtype)
        net(part.to(dtype))
        nets.append(net)
    return nets


@pytest.mark.parametrize("form", ["networks", "state dicts", "both"])
def test_pooled_statistics_are_those_of_all_the_data(form):
    nets = networks()
    states = [net.state_dict() if form != "networks" else net for net in nets]
    if form == "both":
        states[1] = nets[1]
    pooled = vs.merge_statistics(states, SIZES)
    whole = torch.cat(parts())
    assert list(pooled) == ["1.running_mean", "1.running_var", "1.num_batches_tracked"]
    torch.testing.assert_close(pooled["1.running_mean"], whole.mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(pooled["1.running_var"], whole.var(0), rtol=1e-12, atol=1e-12)
    assert int(pooled["1.num_batches_tracked"]) == 3


def test_they_load_and_neither_weights_nor_networks_change():
    nets = networks(torch.float32)
    before = [copy.deepcopy(net.state_dict()) for net in nets]
    pooled = vs.merge_statistics(nets, SIZES)
    for net, state in zip(nets, before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    missing = nets[0].load_state_dict(pooled, strict=False)
    assert not missing.unexpected_keys
    assert pooled["1.running_var"].dtype == torch.float32
    whole = torch.cat(parts()).float()
    torch.testing.assert_close(nets[0][1].running_var, whole.var(0), rtol=1e-5, atol=1e-5)


def test_one_network_keeps_its_statistics():
    (net, *_) = networks()
    pooled = vs.merge_statistics([net], [40])
    torch.testing.assert_close(pooled["1.running_var"], net[1].running_var, rtol=1e-12, atol=0)


def test_the_order_of_the_networks_does_not_matter():
    nets = networks()
    one = vs.merge_statistics(nets, SIZES)
    other = vs.merge_statistics(nets[::-1], SIZES[::-1])
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-12, atol=1e-12)


def test_an_instance_norm_averages_without_the_spread_of_means():
    nets = [nn.InstanceNorm1d(2, track_running_stats=True).double() for _ in range(2)]
    nets[1].running_mean.fill_(4.0)
    nets[1].running_var.fill_(3.0)
    pooled = vs.merge_statistics(nets, [11, 11])
    torch.testing.assert_close(pooled["running_mean"], torch.full((2,), 2.0, dtype=torch.float64))
    torch.testing.assert_close(pooled["running_var"], torch.full((2,), 2.0, dtype=torch.float64))


@pytest.mark.parametrize(
    ("states", "counts", "message"),
    [
        ([nn.BatchNorm1d(3), nn.BatchNorm1d(4)], [9, 9], r"states\[1\]: the statistics of '' have the shape"),
        ([nn.BatchNorm1d(3), nn.Sequential(nn.BatchNorm1d(3))], [9, 9], "do not have the same norms"),
        ([nn.BatchNorm1d(3)], [9, 9], "counts has 2 numbers for 1 states"),
        ([nn.BatchNorm1d(3)] * 2, [0.5, 0.5], r"counts\[0\]=0.5 must be more than 1"),
        ([nn.BatchNorm1d(3)] * 2, [9, float("nan")], r"counts\[1\]=nan"),
        ([nn.Linear(2, 2)], [9], "has no running statistics"),
        ([3], [9], r"states\[0\] is a int"),
        (nn.BatchNorm1d(3), [9], "must be a list"),
        ([], [], "must be a list"),
    ],
)
def test_what_does_not_fit_is_named(states, counts, message):
    with pytest.raises(vs.VarshiftError, match=message):
        vs.merge_statistics(states, counts)


def test_the_example_runs():
    assert doctest.testmod(_merge_statistics).failed == 0
