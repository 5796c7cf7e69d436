"""The same figures on a GPU as on the CPU."""

import copy

import pytest
import torch

import varshift as vs
from varshift.probe import measure

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_recalibration_agrees_with_the_cpu(net, batches):
    there = copy.deepcopy(net).cuda()
    vs.recalibrate(net, batches)
    handle = vs.recalibrate(there, batches)
    assert handle.samples == sum(len(x) for x, _ in batches)
    for name, value in net.state_dict().items():
        if "running_" in name:
            torch.testing.assert_close(there.state_dict()[name].cpu(), value, rtol=1e-3, atol=1e-3)


def test_measurement_agrees_with_the_cpu(net, batches):
    net[1].p = 0.0
    there = copy.deepcopy(net).cuda()
    moved = [(x.cuda(), y.cuda()) for x, y in batches]
    for here, other in zip(measure(net, batches).layers, measure(there, moved).layers, strict=True):
        assert other.ratio == pytest.approx(here.ratio, rel=1e-3)
        assert other.control_ratio == pytest.approx(here.control_ratio, rel=1e-3)


def test_random_state_of_the_device_is_restored(net, batches):
    there = net.cuda()
    before = torch.cuda.get_rng_state()
    vs.recalibrate(there, batches, noise=True)
    assert torch.equal(before, torch.cuda.get_rng_state())
