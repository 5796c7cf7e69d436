"""Graph networks: what indices move is followed, or norms have no figures and the limits say why."""

import pytest
import torch
from brute_force import measured
from torch import nn
from torch.nn import functional as F

import varshift as vs
from varshift.moments import predict

NODES, WIDTH = 384, 12


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    ends = torch.rand(2, 1200, generator=generator)
    ends[1] = ends[1].square()  # some nodes have far more neighbours than others
    loops = torch.arange(NODES).expand(2, -1)
    return torch.randn(NODES, 6, generator=generator), torch.cat([(NODES * ends).long(), loops], 1)


def columns(index, like):
    return index[:, None].expand_as(like)


def degrees(index):
    return torch.zeros(NODES).scatter_add(0, index, torch.ones(len(index)))


def symmetric(x, source, target):
    scale = degrees(target).pow(-0.5)
    scale = scale.masked_fill(scale == float("inf"), 0.0)
    return torch.zeros_like(x).index_add_(0, target, (scale[source] * scale[target])[:, None] * x[source])


def dense(x, source, target):
    matrix = torch.zeros(NODES, NODES)
    matrix[target, source] = 1.0
    return (matrix / matrix.sum(1, keepdim=True)) @ x


def sparse(x, source, target):
    size, ones = (NODES, NODES), torch.ones(len(source))
    links = torch.sparse_coo_tensor(torch.stack([target, source]), ones, size, check_invariants=False)
    return torch.sparse.mm(links, x)


AGGREGATIONS = {
    "index_add_": lambda x, s, t: torch.zeros_like(x).index_add_(0, t, x[s]),
    "index_add": lambda x, s, t: torch.zeros(NODES, WIDTH).index_add(0, t, x.index_select(0, s), alpha=0.5),
    "index_put": lambda x, s, t: torch.zeros_like(x).index_put((t,), x[s], accumulate=True),
    "scatter_add": lambda x, s, t: torch.zeros_like(x).scatter_add(0, columns(t, x[s]), x[s]),
    "gather and scatter_reduce_": lambda x, s, t: torch.zeros_like(x).scatter_reduce_(
        0, columns(t, x[s]), torch.gather(x, 0, columns(s, x[s])), "sum"
    ),
    "mean of neighbours": lambda x, s, t: torch.zeros_like(x).scatter_reduce(
        0, columns(t, x[s]), x[s], "mean", include_self=False
    ),
    "sum over count": lambda x, s, t: (
        torch.zeros_like(x).index_add(0, t, x[s]) / degrees(t).clamp_min(1)[:, None]
    ),
    "largest neighbour": lambda x, s, t: torch.zeros_like(x).scatter_reduce(
        0, columns(t, x[s]), x[s], "amax", include_self=False
    ),
    "degrees on both sides": symmetric,
    "a dense matrix": dense,
    "a sparse matrix": sparse,
}  # fmt: skip


class Messages(nn.Module):
    def __init__(self, aggregate):
        super().__init__()
        self.aggregate = aggregate
        self.first, self.second = nn.Linear(6, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.norm, self.last = nn.BatchNorm1d(WIDTH), nn.BatchNorm1d(WIDTH)

    def forward(self, x, edges):
        x = F.relu(self.norm(self.aggregate(self.first(x), *edges)))
        return self.last(self.aggregate(self.second(F.dropout(x, 0.5, self.training)), *edges))


def attended(x, source, target):
    """Softmax attention over the neighbours, as in graph attention networks."""
    score = F.leaky_relu(x.sum(1)[source] + x[:, :3].sum(1)[target], 0.2)
    most = torch.zeros(NODES).scatter_reduce(0, target, score, "amax", include_self=False)
    weight = (score - most[target]).exp()
    weight = weight / torch.zeros(NODES).scatter_add(0, target, weight)[target]
    return torch.zeros_like(x).index_add_(0, target, weight[:, None] * x[source])


def strongest(x, source, target):
    """Rows in the order of their size, as pooling layers that keep some of the nodes use them."""
    return x[x.square().sum(1).argsort()]


def call(net, inputs):
    return net(*inputs)


def settled(net):
    vs.recalibrate(net, [batch()] * 60, noise=True, forward=call)
    return net


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_aggregation_over_neighbours_agrees_with_brute_force(name):
    net, inputs = Messages(AGGREGATIONS[name]), batch()
    share, local, ratio = measured(net, inputs)["last"]
    settled(net)
    layer = predict(net, inputs, forward=call).layer("last")
    assert layer.confidence != "none"
    assert layer.noise_share == pytest.approx(share, rel=0.1)
    assert layer.local_ratio == pytest.approx(local, rel=0.1)
    assert layer.ratio == pytest.approx(ratio, rel=0.1)
    without_data = predict(net, inputs, forward=call, method="anchored").layer("last")
    assert without_data.ratio == pytest.approx(ratio, rel=0.25)


def test_a_check_shows_the_same_of_messages_as_a_measurement():
    net = settled(Messages(AGGREGATIONS["mean of neighbours"]))
    report = vs.check(net, [batch()] * 4, forward=call, loss=lambda outputs, _: outputs.square().mean())
    row = report.layer("last")
    assert row.ratio < 0.7
    assert row.predicted_ratio == pytest.approx(row.ratio, rel=0.25)


@pytest.mark.parametrize(("aggregate", "operation"), [(attended, "div"), (strongest, "argsort")])
def test_what_is_not_followed_is_named_and_has_no_figures(aggregate, operation):
    net, inputs = settled(Messages(aggregate)), batch()
    before = net.last.running_var.clone()
    prediction = predict(net, inputs, forward=call)
    layer = prediction.layer("last")
    assert (layer.ratio, layer.local_ratio, layer.noise_share, layer.confidence) == (None, None, None, "none")
    assert prediction.layer("norm").ratio == pytest.approx(1, abs=1e-4)
    assert any(f"'{operation}' could not be followed" in limit for limit in prediction.limits)
    report = vs.check(net, example_inputs=inputs, forward=call)
    assert report.layer("last").predicted_ratio is None
    assert any(f"'{operation}' could not be followed" in limit for limit in report.limits)
    assert "last" not in prediction.statistics
    assert torch.equal(before, net.last.running_var)
