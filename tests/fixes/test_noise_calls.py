"""Noise in calls, which are rewritten where no module and no attribute has the wished places to itself."""

import pytest
import torch
from operation import operate, same_in_eval
from torch import nn
from torch.nn import functional as F

from varshift import SiteId
from varshift.fixes import Refused

X = torch.randn(8, 6)


class Literal(nn.Module):
    """Two calls with rates of their own, one of them in a loop."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Linear(6, 6)

    def forward(self, x):
        x = F.dropout(self.weight(x), 0.5, self.training)
        for _ in range(2):
            x = F.dropout(x.relu(), 0.25, training=self.training)
        return x


class Twice(nn.Module):
    """One layer at two places."""

    def __init__(self):
        super().__init__()
        self.weight, self.drop = nn.Linear(6, 6), nn.Dropout(0.5)

    def forward(self, x):
        x = self.drop(x)
        return self.drop(self.weight(x))


class Looped(nn.Module):
    """One layer that one call runs several times."""

    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return torch.stack([self.drop(part) for part in x.split(3, 1)])


class Fused(nn.Module):
    """Fused attention whose rate is a literal."""

    def __init__(self, causal=False):
        super().__init__()
        self.causal, self.weight = causal, nn.Linear(6, 6)

    def forward(self, x):
        x = self.weight(x).reshape(2, 4, 6)
        return F.scaled_dot_product_attention(
            x, x, x, dropout_p=0.2 if self.training else 0.0, is_causal=self.causal
        )


def gate(x, rate, training):
    """Drop path that is not rescaled."""
    if not training:
        return x
    return x * torch.rand(x.shape[0], 1).gt(rate)


class Gated(nn.Module):
    """A branch that is dropped, and not rescaled."""

    def __init__(self):
        super().__init__()
        self.weight, self.rate = nn.Linear(6, 6), 0.5

    def forward(self, x):
        return x + gate(self.weight(x), self.rate, self.training)


class Always(nn.Module):
    """Noise of several writings that acts in evaluation, too."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Linear(6, 6)

    def forward(self, x):
        x = F.dropout(self.weight(x), 0.5)
        return F.dropout(x.relu(), p=0.25, training=self.training)


def test_one_call_of_two_is_removed():
    net = Literal()
    operation = operate(net, X, "remove-noise", SiteId("", "dropout"))
    assert operation.proof.exact, operation.proof.unexpected
    assert [rate for *_, rate in operation.noises] == [0.25, 0.25]
    assert [change.method for change in operation.changes] == ["call"]
    assert same_in_eval(net, operation, X)
    assert type(operation.network).__name__ == "Literal"


def test_a_call_in_a_loop_is_one_unit_and_says_so():
    operation = operate(Literal(), X, "remove-noise", SiteId("", "dropout", 2))
    assert operation.proof.exact, operation.proof.unexpected
    assert [rate for *_, rate in operation.noises] == [0.5]
    assert len(operation.changes) == 2
    assert "2 places" in operation.changes[0].why


def test_rates_and_kinds_of_calls_change():
    lowered = operate(Literal(), X, "lower-rate", factor=0.5)
    assert [rate for *_, rate in lowered.noises] == [0.25, 0.125, 0.125]
    assert lowered.proof.exact, lowered.proof.unexpected
    swapped = operate(Literal(), X, "swap-noise", to="gaussian")
    assert [kind for _, kind, _ in swapped.noises] == ["gaussian"] * 3
    assert swapped.proof.exact, swapped.proof.unexpected


@pytest.mark.parametrize("ordinal", [1, 2])
def test_one_place_of_a_shared_layer_is_separated(ordinal):
    net = Twice()
    operation = operate(net, X, "remove-noise", SiteId("drop", "dropout", ordinal))
    assert operation.proof.exact, operation.proof.unexpected
    assert len(operation.noises) == 1
    assert [change.method for change in operation.changes] == ["call"]
    assert same_in_eval(net, operation, X)
    whole = operate(net, X, "remove-noise")
    assert whole.noises == []
    assert {change.method for change in whole.changes} == {"module"}


def test_a_layer_that_one_call_runs_in_a_loop_is_swapped_as_a_whole():
    operation = operate(Looped(), X, "remove-noise", SiteId("drop", "dropout", 2))
    assert operation.noises == []
    assert isinstance(operation.network.drop, nn.Identity)
    assert "2 places" in operation.changes[0].why


@pytest.mark.parametrize("causal", [False, True])
def test_fused_attention_gets_other_noise_on_its_weights(causal):
    net = Fused(causal)
    operation = operate(net, X, "swap-noise")
    assert operation.proof.exact, operation.proof.unexpected
    ((_, kind, beta),) = operation.noises
    assert (kind, beta) == ("uniform", pytest.approx((3 * 0.25) ** 0.5, rel=1e-4))
    assert same_in_eval(net, operation, X)
    torch.manual_seed(0)
    x, changed = X.repeat(64, 1)[:8], operation.network.train()
    with torch.no_grad():
        draws = torch.stack([changed(x) for _ in range(4000)])
        exact = net.eval()(x)
    torch.testing.assert_close(draws.mean(0), exact, atol=0.05, rtol=0)
    removed = operate(Fused(causal), X, "remove-noise")
    assert removed.noises == []


def test_noise_in_evaluation_follows_its_module():
    net = Always()
    operation = operate(net, X, "follow-mode")
    assert operation.proof.exact, operation.proof.unexpected
    assert [site.rate for site in operation.before.eval.noises] == [0.5]
    assert operation.after.eval.noises == ()
    assert [rate for *_, rate in operation.noises] == [0.5, 0.25]
    with pytest.raises(Refused, match="declared"):
        operate(net, X, "follow-mode", settings={"intended": [":dropout"]})
    with pytest.raises(Refused, match="training only"):
        operate(net, X, "follow-mode", SiteId("", "dropout", 2))


def test_other_noise_in_the_place_of_noise_for_evaluation_stays_for_evaluation():
    operation = operate(Always(), X, "swap-noise", SiteId("", "dropout"))
    assert operation.proof.exact, operation.proof.unexpected
    assert [site.kind for site in operation.after.eval.noises] == ["uniform"]


def test_drop_path_is_rescaled():
    net = Gated()
    operation = operate(net, X, "rescale-noise")
    ((site,), (after,)) = operation.before.train.noises, operation.after.train.noises
    assert (site.kind, site.mean_factor) == ("drop_path", pytest.approx(0.5, abs=1e-3))
    assert (after.kind, after.mean_factor) == ("drop_path", pytest.approx(1.0, abs=1e-3))
    assert operation.proof.exact, operation.proof.unexpected
    assert same_in_eval(net, operation, X)
    with pytest.raises(Refused, match="keeps the mean"):
        operate(operation.network, X, "rescale-noise")


def test_what_cannot_be_reached_is_refused_with_the_edit_by_hand():
    text = """class Hidden(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Linear(6, 6)
    def forward(self, x):
        return F.dropout(self.weight(x), 0.5, self.training)
"""
    space = {"nn": nn, "F": F, "__name__": "nowhere"}
    exec(text, space)  # a class without a source
    net = nn.Sequential(space["Hidden"](), nn.Dropout(0.25))
    with pytest.raises(Refused, match="0:dropout cannot be changed here"):
        operate(net, X, "remove-noise", SiteId("0", "dropout"))
    others = operate(net, X, "remove-noise")
    assert others.noises == [("0", "dropout", 0.5)]
    assert "0:dropout cannot be changed here" in others.patient.notes[0]


@pytest.mark.parametrize("weights", [True, False], ids=["weights returned", "fused"])
@pytest.mark.parametrize("width", [6, 4], ids=["one width", "two widths"])
def test_the_attention_layer_of_torch_gets_other_noise(weights, width):
    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(6, 2, 0.3, batch_first=True, kdim=width, vdim=width)

        def forward(self, x):
            keys = x[..., :width]
            return self.attention(x, keys, keys, need_weights=weights)[0]

    net, x = Attends(), X.reshape(2, 4, 6)
    operation = operate(net, x, "swap-noise", beta=0.2)
    assert operation.proof.exact, operation.proof.unexpected
    assert operation.noises == [("attention", "uniform", 0.2)]
    assert same_in_eval(net, operation, x)
    assert operation.network.state_dict().keys() == net.state_dict().keys()
    lowered = operate(net, x, "lower-rate", rate=0.1)
    assert [rate for *_, rate in lowered.noises] == [0.1]
