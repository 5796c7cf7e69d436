"""Noise in modules of its own and rates in attributes: removed, lowered and swapped, proven by a capture."""

import copy
import pickle

import pytest
import torch
from operation import operate, same_in_eval
from torch import nn
from torch.nn import functional as F

from varshift import SiteId
from varshift.fixes import Refused, Surgery, read_edit
from varshift.flow import capture

X = torch.randn(8, 6)
MAPS = torch.randn(4, 6, 5, 5)


class OwnNoise(nn.Module):
    """Noise written by hand in a module of its own."""

    def __init__(self, keep_prob=0.8):
        super().__init__()
        self.keep_prob = keep_prob

    def forward(self, x):
        if not self.training:
            return x
        return x * torch.rand_like(x).lt(self.keep_prob) / self.keep_prob


class Functional(nn.Module):
    """A functional call whose rate is an attribute, next to one with another."""

    def __init__(self):
        super().__init__()
        self.weight, self.rate, self.other = nn.Linear(6, 6), 0.25, 0.125

    def forward(self, x):
        x = F.dropout(self.weight(x), self.rate, self.training)
        return F.dropout(x.relu(), p=self.other, training=self.training)


class Attention(nn.Module):
    """Fused attention that reads the rate of a layer that it never calls."""

    def __init__(self):
        super().__init__()
        self.drop, self.after = nn.Dropout(0.2), nn.Dropout(0.2)

    def forward(self, x):
        x = x.reshape(2, 4, 6)
        return self.after(
            F.scaled_dot_product_attention(x, x, x, dropout_p=self.drop.p if self.training else 0.0)
        )


class Both(nn.Module):
    """One layer that is called, and whose rate another call reads."""

    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.2)

    def forward(self, x):
        x = self.drop(x)
        return F.dropout(x.relu(), self.drop.p, self.training)


class Settings:
    """A configuration as transformers have it."""

    def __init__(self):
        self.attention_dropout, self.other = 0.3, 0.4


class Configured(nn.Module):
    """Two layers that read the rate from one configuration."""

    def __init__(self, config):
        super().__init__()
        self.config = config

    def forward(self, x):
        return F.dropout(x.relu(), self.config.attention_dropout, self.training)


class Shared(nn.Module):
    """One layer under two names and at two places."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Linear(6, 6)
        self.drop = nn.Dropout(0.5)
        self.again = self.drop

    def forward(self, x):
        return self.again(self.weight(self.drop(x)))


def two_configured():
    config = Settings()
    return nn.Sequential(Configured(config), nn.Linear(6, 6), Configured(config))


LAYERS = [
    nn.Dropout(0.5),
    nn.Dropout2d(0.5),
    nn.AlphaDropout(0.5),
    nn.FeatureAlphaDropout(0.5),
    OwnNoise(),
]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_layers_are_removed(layer):
    net = nn.Sequential(nn.Conv2d(6, 6, 1), layer, nn.Conv2d(6, 6, 1))
    operation = operate(net, MAPS, "remove-noise")
    assert operation.proof.exact, operation.proof.unexpected
    assert operation.noises == []
    assert [change.method for change in operation.changes] == ["module"]
    assert same_in_eval(net, operation, MAPS)
    assert operation.network.state_dict().keys() == net.state_dict().keys()


@pytest.mark.parametrize(
    ("network", "inputs", "attributes"),
    [
        (Functional(), X, ["rate", "other"]),
        (Attention(), X.repeat(1, 1), ["drop.p"]),
        (two_configured(), X, ["config.attention_dropout"]),
        (nn.Sequential(nn.LSTM(6, 6, 2, dropout=0.3)), X.view(1, 8, 6), ["dropout"]),
        (nn.Sequential(nn.GRU(6, 6, 2, dropout=0.3)), X.view(1, 8, 6), ["dropout"]),
    ],
    ids=["functional", "attention", "config", "lstm", "gru"],
)
def test_attributes_are_set_where_they_drive_the_rate(network, inputs, attributes):
    operation = operate(network, inputs, "remove-noise")
    assert operation.proof.exact, operation.proof.unexpected
    assert operation.noises == []
    set_ = [edit for edit in operation.edits if edit.op == "set-attribute"]
    places = [f"{edit.path}.{edit.attribute}".lstrip(".").removeprefix("0.") for edit in set_]
    assert places == attributes


def test_one_attribute_of_two_places_is_set_once_and_says_so():
    operation = operate(two_configured(), X, "lower-rate", rate=0.1)
    (edit,) = operation.edits
    assert [str(site) for site in edit.sites] == ["0:dropout", "2:dropout"]
    assert [rate for *_, rate in operation.noises] == [0.1, 0.1]
    assert all("2 places" in change.why for change in operation.changes)


def test_one_of_two_functional_places_keeps_its_rate():
    operation = operate(Functional(), X, "remove-noise", SiteId("", "dropout", 2))
    assert operation.proof.exact, operation.proof.unexpected
    assert operation.noises == [("", "dropout", 0.25)]
    assert operation.network.other == 0.0


def test_a_keep_probability_goes_the_other_way():
    net = nn.Sequential(nn.Linear(6, 6), OwnNoise(0.9))
    operation = operate(net, X, "lower-rate", factor=0.5)
    assert operation.network[1].keep_prob == pytest.approx(0.95)
    assert operation.proof.exact, operation.proof.unexpected


def test_a_rate_that_parents_read_stays_readable():
    net = Both()
    operation = operate(net, X, "remove-noise")
    assert operation.noises == []
    assert operation.network.drop.p == 0.0
    alone = operate(net, X, "remove-noise", SiteId("drop", "dropout"))
    assert alone.proof.exact, alone.proof.unexpected
    assert alone.noises == [("", "dropout", 0.2)]
    swapped = operate(net, X, "swap-noise", SiteId("drop", "dropout"), beta=0.1)
    assert swapped.proof.exact, swapped.proof.unexpected
    assert swapped.noises == [("drop", "uniform", 0.1), ("", "dropout", 0.2)]


def test_a_layer_of_several_names_is_swapped_under_all():
    operation = operate(Shared(), X, "remove-noise")
    assert operation.noises == []
    assert operation.network.drop is operation.network.again
    assert len(operation.changes) == 2
    assert "2 places" in operation.changes[0].why


def test_nothing_is_changed_by_planning_and_everything_comes_back():
    net = nn.Sequential(Functional(), nn.Dropout(0.3), Attention())
    before = pickle.dumps([dict(vars(m)) for m in net.modules() if not list(m.children())])
    operation = operate(net, X, "remove-noise")
    assert operation.noises == []
    operation.surgery.undo()
    assert repr(operation.surgery.network) == repr(net)
    assert before == pickle.dumps([dict(vars(m)) for m in net.modules() if not list(m.children())])
    assert operation.network[0].rate == 0.25
    assert [site.rate for site in capture(operation.network, X).train.noises] == [0.25, 0.125, 0.3, 0.2, 0.2]


def test_edits_repeat_on_a_fresh_model_from_their_json():
    net = nn.Sequential(Functional(), nn.Dropout(0.3))
    operation = operate(net, X, "swap-noise", SiteId("1", "dropout"), to="gaussian")
    removal = operate(net, X, "remove-noise", SiteId("0", "dropout"))
    fresh = Surgery(copy.deepcopy(net))
    for edit in (*operation.edits, *removal.edits):
        assert read_edit(edit.to_json()) == edit
        read_edit(edit.to_json()).apply(fresh)
    noises = capture(fresh.network, X).train.noises
    assert [(site.kind, site.rate) for site in noises] == [("dropout", 0.125), ("gaussian", 0.654654)]
    with pytest.raises(Refused, match="was a Dropout in the plan"):
        operation.edits[0].apply(fresh)
    with pytest.raises(Refused, match=r"'0\.rate' is 0\.0, and was 0\.25"):
        removal.edits[0].apply(fresh)


def test_a_network_without_noise_is_refused_untouched():
    net = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(0.0))
    for code in ("remove-noise", "lower-rate", "swap-noise", "follow-mode", "rescale-noise"):
        with pytest.raises(Refused):
            operate(net, X, code)


@pytest.mark.parametrize(("to", "strength"), [("uniform", 3**0.5 / 3), ("gaussian", 1 / 3)])
def test_dropout_between_weights_is_swapped_like_any_other(to, strength):
    class Positions(nn.Module):
        """A bias that a small network makes of a table, as for relative positions."""

        def __init__(self):
            super().__init__()
            self.table, self.drop = nn.Parameter(torch.randn(8, 6)), nn.Dropout(0.1)
            self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x):
            return x + self.last(self.drop(self.first(self.table).relu()))

    net = Positions()
    operation = operate(net, X, "swap-noise", to=to)
    assert [site.kind for site in operation.before.train.noises] == ["weight_dropout"]
    assert operation.proof.exact, operation.proof.unexpected
    assert operation.noises == [("drop", to, pytest.approx(strength, rel=1e-4))]
    assert same_in_eval(net, operation, X)
