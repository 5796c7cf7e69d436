"""Norms of slices of a batch: each slice as a batch of its own, evaluation as ever."""

import copy

import pytest
import torch
from torch import nn

import varshift as vs
from varshift.nn import BatchKalmanNorm2d, BatchRenorm2d, RenormClipping
from varshift_lab.networks import preresnet
from varshift_lab.networks._split_norm import SplitBatchNorm2d, SplitBatchRenorm2d

OPEN = RenormClipping.fixed(3, 5)


def layers(kind):
    if kind == "batch":
        return SplitBatchNorm2d(4, 3), nn.BatchNorm2d(4)
    return SplitBatchRenorm2d(4, 3, clipping=OPEN), BatchRenorm2d(4, clipping=OPEN)


@pytest.mark.parametrize("kind", ["batch", "renorm"])
def test_every_slice_is_a_batch_of_its_own(kind):
    split, whole = layers(kind)
    with torch.no_grad():
        for layer in (split, whole):
            layer.weight.copy_(torch.tensor([0.5, 1, 2, 3]))
            layer.bias.copy_(torch.tensor([0.0, 1, -1, 2]))
            layer.running_mean.fill_(0.3)
    x = torch.randn(6, 4, 5, 3, generator=torch.Generator().manual_seed(0)) * 2 + 1
    y = split(x)
    means, variances = [], []
    for index in range(3):
        own = copy.deepcopy(whole)
        torch.testing.assert_close(y[2 * index : 2 * index + 2], own(x[2 * index : 2 * index + 2]))
        means.append(own.running_mean)
        variances.append(own.running_var)
    torch.testing.assert_close(split.running_mean, torch.stack(means).mean(0))
    torch.testing.assert_close(split.running_var, torch.stack(variances).mean(0))
    assert split.num_batches_tracked == 1


@pytest.mark.parametrize("kind", ["batch", "renorm"])
def test_gradients_are_those_of_the_slices(kind):
    split, whole = layers(kind)
    x = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(1), requires_grad=True)
    g = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(2))
    (split(x) * g).sum().backward()
    ours, x.grad = x.grad, None
    for index in range(3):
        part = slice(2 * index, 2 * index + 2)
        (copy.deepcopy(whole)(x[part]) * g[part]).sum().backward()
    torch.testing.assert_close(ours, x.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["batch", "renorm"])
def test_evaluation_is_batch_norm(kind):
    split, whole = layers(kind)
    split(torch.randn(6, 4, 3, 3))
    whole.load_state_dict(split.state_dict())
    x = torch.randn(5, 4, 3, 3)  # three slices would not fit
    torch.testing.assert_close(split.eval()(x), whole.eval()(x))


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="splits=3 must divide the batch of 4"):
        SplitBatchNorm2d(4, 3)(torch.randn(4, 4, 2, 2))


@pytest.mark.parametrize("norm", ["batch", "renorm", "kalman"])
def test_networks_take_slices_and_the_probe_sees_their_norms(norm):
    network = preresnet(8, width=4, norm=norm, norm_options={"splits": 4})
    kinds = (SplitBatchNorm2d, BatchKalmanNorm2d)
    norms = [module for module in network.modules() if isinstance(module, kinds)]
    assert len(norms) == 7
    assert all(one.splits == 4 for one in norms)
    batches = [(torch.randn(8, 3, 8, 8), torch.zeros(8, dtype=torch.long)) for _ in range(2)]
    network(batches[0][0]).sum().backward()
    with torch.no_grad():
        seen = torch.cat([network.stem(inputs) for inputs, _ in batches])
    before = copy.deepcopy(network.state_dict())
    handle = vs.recalibrate(network, batches)
    assert len(handle.layers) == 7
    torch.testing.assert_close(norms[0].running_mean, seen.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norms[0].running_var, seen.var((0, 2, 3)), rtol=1e-4, atol=1e-5)
    handle.undo()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_one_slice_is_torchs_own_norm():
    assert type(preresnet(8, width=4, norm_options={"splits": 1}).norm) is nn.BatchNorm2d
