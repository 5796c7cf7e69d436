"""What drives noise is presumed where only one attribute can, and measured where the proof says otherwise."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import varshift as vs
from varshift.fixes import Patient
from varshift.rules import Cure

X = torch.randn(4, 6)
PASSES = []


class Counted(nn.Module):
    """Notes its passes."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Linear(6, 6)

    def forward(self, x):
        PASSES.append(self.training)
        return self.noise(self.weight(x))


class Attributes(Counted):
    """Two rates, two places."""

    def __init__(self):
        super().__init__()
        self.first, self.second = 0.3, 0.2

    def noise(self, x):
        x = F.dropout(x, self.first, self.training)
        return F.dropout(x.relu(), self.second, self.training)


class Kept(Counted):
    """A keep probability."""

    def __init__(self):
        super().__init__()
        self.keep = 0.8

    def noise(self, x):
        return F.dropout(x, 1 - self.keep, self.training)


class Layers(Counted):
    """Two layers of one rate."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Dropout(0.3), nn.Dropout(0.3)

    def noise(self, x):
        return self.second(self.first(x).relu())


class Coincidence(Counted):
    """A number that happens to be what the rate is."""

    def __init__(self):
        super().__init__()
        self.slope = 0.3

    def noise(self, x):
        return F.dropout(F.leaky_relu(x, 0.1 + self.slope), 0.3, self.training)


class Scaled(Counted):
    """One number behind two rates, only one of which it looks like."""

    def __init__(self):
        super().__init__()
        self.rate = 0.2

    def noise(self, x):
        x = F.dropout(x, self.rate, self.training)
        return F.dropout(x.relu(), 2 * self.rate, self.training)


class Borrowed(Counted):
    """A layer whose rate another place borrows."""

    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.3)

    def noise(self, x):
        return F.dropout(self.drop(x).relu(), self.drop.p, self.training)


class Lender(nn.Dropout):
    """A layer that takes its rate from another one."""

    lender = None

    def forward(self, x):
        return F.dropout(x, self.lender[0].p, self.training)


class Lent(Counted):
    """Two layers, one of which reads the rate of the other."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Dropout(0.3), Lender(0.3)
        self.second.lender = (self.first,)

    def noise(self, x):
        return self.second(self.first(x).relu())


def removed(network, target=None):
    wish = Cure("remove-noise", "remove", "safe", target, {})
    return vs.fix(network, example_inputs=X, cures=[wish], recheck=False)


@pytest.mark.parametrize("network", [Attributes, Kept, Layers])
def test_what_a_proof_confirms_takes_no_other_capture(network):
    PASSES.clear()
    cured = removed(network())
    assert len(cured.changes) > 0
    assert PASSES == [True, False, True, False]  # before and after


@pytest.mark.parametrize(
    ("build", "target"),
    [
        *((build, None) for build in (Attributes, Kept, Layers, Coincidence, Scaled, Borrowed)),
        *(
            (build, target)
            for build in (Attributes, Scaled, Borrowed, Lent)
            for target in ("first", "second")
        ),
    ],
)
def test_presuming_changes_no_result(build, target, monkeypatch):
    torch.manual_seed(0)
    network = build()
    sites = {change.site for change in removed(network).changes}
    if target is not None:
        target = sorted(sites, key=str)[{"first": 0, "second": -1}[target]]
    presumed = removed(network, target)
    monkeypatch.setattr(Patient, "presumes", property(lambda patient: False, lambda patient, value: None))
    measured = removed(network, target)
    assert [(c.site, c.before, c.after, c.method) for c in presumed.changes] == [
        (c.site, c.before, c.after, c.method) for c in measured.changes
    ]
    assert presumed.failures == measured.failures
    torch.manual_seed(0)
    expected = measured.model.train()(X)
    torch.manual_seed(0)
    assert torch.equal(presumed.model.train()(X), expected)


def test_layers_that_share_a_rate_leave_together():
    cured = removed(Lent())
    assert {change.site.module for change in cured.changes} == {"first", "second"}
    torch.testing.assert_close(cured.model.train()(X), cured.model.eval()(X))


def test_a_wrong_presumption_is_found_out():
    cured = removed(Coincidence())
    assert cured.model.slope == 0.3
    assert cured.changes[0].method == "call"
    torch.testing.assert_close(cured.model.train()(X), cured.model.eval()(X))
