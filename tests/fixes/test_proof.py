"""The proof of a change: exactly what was wished, and nothing else."""

import pytest
import torch
from torch import nn

from varshift import SiteId
from varshift.fixes import InsertNoise, NoiseAction, Surgery, prove
from varshift.flow import capture
from varshift.nn import UniformDropout


class Block(nn.Module):
    """Noise of three kinds of writing, and a residual sum."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.norm, self.drop, self.rate = nn.BatchNorm1d(6), nn.Dropout(0.3), 0.2

    def forward(self, x):
        y = nn.functional.dropout(self.norm(self.first(x)), self.rate, self.training)
        return x + self.second(self.drop(y))


def network():
    torch.manual_seed(0)
    return nn.Sequential(Block(), Block())


X = torch.randn(8, 6)
DROP, RATE = SiteId("0.drop", "dropout"), SiteId("0", "dropout")


def remove(net):
    net[0].drop = nn.Identity()


def swap(net):
    net[0].drop = UniformDropout(0.2)


def lower(net):
    net[0].rate = 0.1


def skip_weight(net):
    net[0].second = nn.Identity()


def skip_norm(net):
    net[1].norm = nn.Identity()


@pytest.mark.parametrize(
    ("change", "touched", "lost", "added"),
    [
        (remove, DROP, (DROP,), ()),
        (swap, DROP, (DROP,), (SiteId("0.drop", "uniform"),)),
        (lower, RATE, (), ()),
    ],
)
def test_the_wished_change_is_proven_and_any_other_is_not(change, touched, lost, added):
    net = network()
    before = capture(net, X)
    change(net)
    after = capture(net, X)
    proof = prove(before, after, [touched])
    assert proof.exact, proof.unexpected
    assert (proof.lost, proof.added, proof.kept) == (lost, added, ())
    other = prove(before, after, [SiteId("1.drop", "dropout")])
    assert not other.exact
    assert str(touched) in other.unexpected[0]


def test_a_place_that_was_to_change_and_did_not_is_kept():
    net = network()
    before = capture(net, X)
    assert prove(before, capture(net, X), [DROP]).kept == (DROP,)


@pytest.mark.parametrize("change", [skip_weight, skip_norm])
def test_an_operation_that_goes_with_the_noise_is_seen(change):
    net = network()
    before = capture(net, X)
    remove(net)
    change(net)
    proof = prove(before, capture(net, X), [DROP])
    assert not proof.exact


def test_signals_that_are_joined_otherwise_are_seen():
    class Wired(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.crossed = nn.Linear(6, 6), False

        def forward(self, x):
            y = self.weight(x)
            z = nn.functional.dropout(y, 0.5, self.training)
            return torch.relu(x if self.crossed else z), torch.tanh(z)

    net = Wired()
    before = capture(net, X)
    net.crossed = True
    proof = prove(before, capture(net, X), [SiteId("", "dropout")])
    assert "reads other signals" in proof.unexpected[0]


def test_a_network_that_no_longer_runs_is_no_proof():
    net = network()
    before = capture(net, X)

    class Raises(nn.Module):
        def forward(self, x):
            if self.training:
                raise RuntimeError("no")
            return x

    net[0].drop = Raises()
    proof = prove(before, capture(net, X), [DROP])
    assert "cannot be run in training any more" in proof.unexpected[0]


def test_noise_that_was_to_be_put_somewhere_and_is_not_there():
    network, x = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 2)), torch.randn(8, 4)
    before = capture(network, x)
    network[1] = nn.Identity()
    proof = prove(before, capture(network, x), [SiteId("1", "dropout"), SiteId("2", "noise")])
    assert proof.unexpected == ("In training, there is no noise at '2', where it was to be put.",)
    InsertNoise("2", "before", NoiseAction("dropout", 0.5)).apply(Surgery(network))
    assert prove(before, capture(network, x), [SiteId("1", "dropout"), SiteId("2", "noise")]).exact
