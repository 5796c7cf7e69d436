"""Group Kalman norm: the battery, the chain, and samples that do not depend on each other."""

import copy

import pytest
import torch
from hypothesis import strategies as st
from layer_tester import LayerTester
from torch import nn

from varshift.functional import KalmanState, group_conv_moments
from varshift.nn import GroupKalmanNorm2d


def plain(x, layer, prediction=None, p=0.9):
    """The equations, sample by sample and group by group."""
    out = torch.empty_like(x)
    size = layer.num_channels // layer.num_groups
    for sample in range(len(x)):
        for group in range(layer.num_groups):
            own = slice(group * size, group * size + size)
            part = x[sample, own]
            mean, var = part.mean(), part.var(correction=0)
            if prediction is not None:
                gap = mean - prediction.mean[sample, group]
                var = p * prediction.var[sample, group] + (1 - p) * var + p * (1 - p) * gap**2
                mean = p * prediction.mean[sample, group] + (1 - p) * mean
            scaled = (part - mean) / (var + layer.eps).sqrt()
            if layer.weight is not None:
                scaled = scaled * layer.weight[own, None, None] + layer.bias[own, None, None]
            out[sample, own] = scaled
    return out


class TestHeadOfChain(LayerTester):
    shape = (2, 6, 3, 3)

    def make(self, **factory):
        return GroupKalmanNorm2d(3, 6, **factory)

    def peer(self):
        return nn.GroupNorm(3, 6)

    def reference(self, layer, x):
        return plain(x, layer)

    def shapes(self):  # one value per group has no variance to check against
        return st.tuples(st.integers(1, 4), st.just(6), st.integers(1, 4), st.integers(2, 4))


class Predicted(nn.Module):
    """A norm inside a chain: the state is that of a first norm on a part of the input."""

    def __init__(self, **factory):
        super().__init__()
        self.first = GroupKalmanNorm2d(2, 4, **factory)
        self.between = nn.Conv2d(4, 6, 1, **factory)
        self.second = GroupKalmanNorm2d(
            3, 6, prediction_weight=0.6, learn_prediction_weight=True, affine=False, **factory
        )
        self.reset_parameters()

    def reset_parameters(self):
        self.first.reset_parameters()
        self.second.reset_parameters()
        nn.init.constant_(self.between.bias, 0.1)
        with torch.no_grad():
            values = torch.linspace(-1, 1, 24, dtype=torch.float32)
            self.between.weight.copy_(values.view(6, 4, 1, 1))

    def extra_repr(self):
        return "predicted"

    def forward(self, x):
        y, state = self.first(x)
        y, _ = self.second(self.between(torch.relu(y)), state, self.between)
        return y


class TestInsideAChain(LayerTester):
    shape = (2, 4, 3, 3)
    low_precision = 0.1  # two norms and a convolution between them, each rounded

    def make(self, **factory):
        return Predicted(**factory)

    def reference(self, layer, x):
        parts = x.unflatten(1, (2, 2))
        state = KalmanState(parts.mean((2, 3, 4)), parts.var((2, 3, 4), correction=0))
        prediction = group_conv_moments(state, 3, layer.between.weight, layer.between.bias)
        signal = layer.between(torch.relu(plain(x, layer.first)))
        return plain(signal, layer.second, prediction, torch.sigmoid(layer.second.weight_logit))

    def shapes(self):
        return st.tuples(st.integers(1, 4), st.just(4), st.integers(1, 4), st.integers(2, 4))


def test_a_learned_transition_between_groups():
    norm = GroupKalmanNorm2d(3, 6, transition="linear", previous_groups=2)
    assert norm.transition.matrix.shape == (3, 2)
    y, state = norm(torch.randn(4, 6, 2, 2), KalmanState(torch.zeros(4, 2), torch.ones(4, 2)))
    assert state.mean.shape == (4, 3)
    y.square().sum().backward()
    assert norm.transition.matrix.grad is not None


def test_the_state_behind_the_affine_map_is_that_of_the_union():
    norm, x = GroupKalmanNorm2d(2, 4, state_source="post-affine").double(), torch.randn(3, 4, 64, 64).double()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 2.0, 3.0, -1.0]))
        norm.bias.copy_(torch.tensor([0.5, -0.5, 1.0, 0.0]))
    y, state = norm(x)
    parts = y.unflatten(1, (2, 2))
    torch.testing.assert_close(state.mean, parts.mean((2, 3, 4)), rtol=0.1, atol=0.1)
    torch.testing.assert_close(state.var, parts.var((2, 3, 4)), rtol=0.1, atol=0.1)


def test_each_sample_has_its_own_guard():
    norm, x = GroupKalmanNorm2d(2, 4, transition="identity"), torch.randn(2, 4, 3, 3)
    var = torch.tensor([[1.0, 1.0], [1e6, 1.0]])
    y, _ = norm(x, KalmanState(torch.ones(2, 2), var))
    torch.testing.assert_close(y[1], nn.functional.group_norm(x, 2)[1])
    assert not torch.allclose(y[0], nn.functional.group_norm(x, 2)[0])


def test_the_chain_compiles_and_exports_with_its_state():
    torch.compiler.reset()
    norm, between = GroupKalmanNorm2d(3, 6), nn.Conv2d(4, 6, 3)

    class Second(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.between = norm, between

        def forward(self, x, state):
            return self.norm(self.between(torch.relu(x)), state, self.between)

    net, x = Second(), torch.randn(2, 4, 5, 5)
    state = KalmanState(torch.zeros(2, 2), torch.ones(2, 2))
    expected = net(x, state)
    compiled = torch.compile(copy.deepcopy(net), fullgraph=True, backend="aot_eager")
    exported = torch.export.export(copy.deepcopy(net), (x, state), strict=False).module()
    for run in (compiled, exported):
        y, own = run(x, state)
        torch.testing.assert_close(y, expected[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(own.var, expected[1].var, rtol=1e-4, atol=1e-5)


def test_refusals():
    with pytest.raises(ValueError, match="num_groups=4 must divide num_channels=6"):
        GroupKalmanNorm2d(4, 6)
    with pytest.raises(ValueError, match="transition='conv-sample'"):
        GroupKalmanNorm2d(3, 6, transition="conv-sample")
    with pytest.raises(ValueError, match="must have 4 axes and 6 channels"):
        GroupKalmanNorm2d(3, 6)(torch.randn(2, 6, 3))
    with pytest.raises(ValueError, match="layer=None"):
        GroupKalmanNorm2d(3, 6)(torch.randn(2, 6, 3, 3), KalmanState(torch.zeros(2, 3), torch.ones(2, 3)))
