"""Noise that an operation joins with its signal, with no call to replace: the operation is rewritten."""

import copy
import json
import linecache
import pickle
import re

import pytest
import torch
from operation import operate, same_in_eval
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from varshift import SiteId
from varshift.fixes import Join, NoiseAction, Refused, edit_by_hand, join_of, read_edit
from varshift.flow import capture

X = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))


def kept(x):
    """A mask of a helper, which no call of the noise contains."""
    return (torch.rand_like(x) >= 0.1).to(x.dtype)


class Inline(nn.Module):
    """A layer with noise after it in the same method; nothing holds the rate."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)


class Product(Inline):
    def forward(self, x):
        x = self.layer(x)
        if self.training:
            x = x * kept(x) / 0.9
        return x.tanh()


class MaskFirst(Inline):
    def forward(self, x):
        x = self.layer(x)
        if self.training:
            mask = kept(x)
            x = mask * x * (1 / 0.9)
        return x.tanh()


class ScaledBefore(Inline):
    def forward(self, x):
        x = self.layer(x)
        return (x / 0.9 * kept(x) if self.training else x).tanh()


class ScaledMask(Inline):
    def forward(self, x):
        if not self.training:
            return x + self.layer(x)
        mask = torch.rand(x.shape[0], 1)
        mask = mask.ge_(0.1).div(0.9).detach()
        return x + self.layer(x) * mask


class NotRescaled(Inline):
    def forward(self, x):
        x = self.layer(x)
        if self.training:
            x = x * torch.empty_like(x).bernoulli_(0.9)
        return x.tanh()


class Method(Inline):
    def forward(self, x):
        x = self.layer(x)
        if self.training:
            x = x.mul(kept(x)).div(0.9)
        return x.tanh()


class InPlaceMethod(Inline):
    def forward(self, x):
        x = self.layer(x)
        same = x
        if self.training:
            x.mul_(kept(x)).div_(0.9)
        return same.tanh()


class Augmented(Inline):
    def forward(self, x):
        x = self.layer(x)
        same = x
        if self.training:
            x *= kept(x)
            x /= 0.9
        return same.tanh()


class Function(Inline):
    def forward(self, x):
        x = self.layer(x)
        return torch.mul(x, kept(x) / 0.9).tanh() if self.training else x.tanh()


class Filled(Inline):
    def forward(self, x):
        x = self.layer(x)
        return x.masked_fill(torch.rand_like(x) < 0.1, 0.0).div(0.9) if self.training else x


class Where(Inline):
    def forward(self, x):
        x = self.layer(x)
        return torch.where(torch.rand_like(x) < 0.1, 0.0, x) / 0.9 if self.training else x


class Factor(Inline):
    def forward(self, x):
        x = self.layer(x)
        if self.training:
            x = x * (1 + 0.3 * torch.randn_like(x))
        return x.tanh()


class Term(Inline):
    def forward(self, x):
        x = self.layer(x)
        if self.training:
            x = x + 0.3 * torch.randn_like(x)
        return x.tanh()


class Masked(Inline):
    def forward(self, x, mask):
        x = self.layer(x)
        return x.tanh() if mask is None else (x * mask).tanh()


class PassedIn(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.masked = nn.Linear(6, 6), Masked()

    def forward(self, x):
        return self.masked(self.layer(x), kept(x) / 0.9 if self.training else None)


def branch(x, layer, training):
    x = layer(x)
    if training:
        x = x * kept(x) / 0.9
    return x.tanh()


class Helper(Inline):
    def forward(self, x):
        return branch(x, self.layer, self.training) + branch(x, self.layer, False)


class AugmentedPart(Inline):
    def forward(self, x):
        x = self.layer(x)
        if self.training:
            x[:, 2:] *= kept(x[:, 2:]) / 0.9
        return x.tanh()


class Weight(Inline):
    def forward(self, x):
        weight = self.layer.weight
        if self.training:
            weight = weight * (torch.rand_like(weight) >= 0.1) / 0.9
        return F.linear(x, weight, self.layer.bias)


class TwoSteps(Inline):
    def forward(self, x):
        x = self.layer(x)
        if self.training:
            x = x + x * torch.randn_like(x) * 0.3
        return x.tanh()


class Loop(Inline):
    def forward(self, x):
        for keep in (0.9, 0.9) if self.training else ():
            x = self.layer(x)
            x = x * kept(x) / keep
        return x.tanh()


class OtherScales(Inline):
    def forward(self, x):
        for keep in (0.9, 0.8) if self.training else ():
            x = self.layer(x)
            x = x * (torch.rand_like(x) < keep) / keep
        return x.tanh()


class Larger(Inline):
    def forward(self, x):
        x = self.layer(x)[:, None]
        return (x * kept(x.expand(-1, 3, -1)) / 0.9).mean(1) if self.training else x.mean(1)


class FilledAgain(Inline):
    def forward(self, x):
        x = self.layer(x)
        if self.training:
            mask = kept(x)
            x = x * mask
            x = x + (1 - mask) * 0.5
        return x.tanh()


class NoSelf(Inline):
    def forward(*values):
        module, x = values
        x = module.layer(x)
        return x * kept(x) / 0.9 if module.training else x


FORMS = [
    *(Product, MaskFirst, ScaledBefore, ScaledMask, NotRescaled, Method, InPlaceMethod, Augmented),
    *(Function, Filled, Where, Factor, Term, PassedIn, Helper),
]


def made(cls):
    torch.manual_seed(0)
    return cls()


def in_training(network, x=X):
    torch.manual_seed(3)
    return network.train()(x)


@pytest.fixture(params=FORMS, ids=lambda cls: cls.__name__)
def network(request):
    return made(request.param)


def test_swapped_for_other_noise_and_nothing_else(network):
    operation = operate(network, X, "swap-noise", beta=0.2)
    assert operation.proof.exact, operation.proof.unexpected
    assert [(kind, rate) for _, kind, rate in operation.noises] == [("uniform", pytest.approx(0.2))]
    (site,) = operation.after.train.noises
    assert site.mean_factor == pytest.approx(1.0)
    assert [change.method for change in operation.changes] == ["call"]
    assert same_in_eval(network, operation, X)


def test_removed_the_signal_passes_as_in_evaluation(network):
    operation = operate(network, X, "remove-noise")
    assert operation.proof.exact, operation.proof.unexpected
    assert operation.noises == []
    cured = operation.network
    torch.testing.assert_close(in_training(cured), cured.eval()(X))
    assert same_in_eval(network, operation, X)
    operation.surgery.undo()
    assert torch.equal(in_training(cured), in_training(network))


def test_the_edited_network_is_as_good_as_the_class(network):
    operation = operate(network, X, "swap-noise", beta=0.2)
    cured = operation.network
    assert list(cured.state_dict()) == list(network.state_dict())
    for other in (copy.deepcopy(cured), pickle.loads(pickle.dumps(cured))):
        assert torch.equal(in_training(other), in_training(cured))
    gradients = []
    for run in (cured, lambda x: checkpoint(cured, x, use_reentrant=False)):
        x = X.clone().requires_grad_()
        torch.manual_seed(5)
        run(x).square().sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-6)
    torch.export.export(cured.train(), (X,), strict=False)
    torch._dynamo.reset()
    compiled = torch.compile(cured, fullgraph=True, backend="eager")
    compiled(X).sum().backward()
    torch.testing.assert_close(compiled.eval()(X), network.eval()(X))


def test_an_operation_in_a_loop_is_one_unit():
    network = made(Loop)
    operation = operate(network, X, "remove-noise", SiteId("", "dropout", 2))
    assert operation.proof.exact, operation.proof.unexpected
    assert operation.noises == []
    assert len(operation.changes) == 2
    assert "2 places" in operation.changes[0].why
    assert operation.changes[0].after == "times 0.9"


@pytest.mark.parametrize("cls", [AugmentedPart, Weight, TwoSteps, OtherScales, Larger, FilledAgain, NoSelf])
def test_refused_with_the_edit_by_hand(cls):
    network = made(cls)
    with pytest.raises(Refused, match="By hand: ") as refusal:
        operate(network, X, "swap-noise", beta=0.2)
    line, text = re.search(r"test_rewrite_joins\.py:(\d+): (?:replace )?`(.*?)`", str(refusal.value)).groups()
    assert text in linecache.getline(__file__, int(line))


@pytest.mark.parametrize(
    ("cls", "before", "after", "removed"),
    [
        (ScaledMask, "self.layer(x) * mask", "self.noise(self.layer(x))", "self.layer(x)"),
        (NotRescaled, "x * torch.empty_like(x).bernoulli_(0.9)", "self.noise(x)", "x"),
        (Augmented, "x *= kept(x)", "x = self.noise(x) * 0.9", "x = x * 0.9"),
        (Method, "x.mul(kept(x))", "self.noise(x) * 0.9", "x * 0.9"),
        (Function, "torch.mul(x, kept(x) / 0.9)", "self.noise(x)", "x"),
    ],
)
def test_the_edit_by_hand(cls, before, after, removed):
    flow = capture(made(cls), X).train
    (site,) = flow.noises
    join = join_of(flow, site)
    text = edit_by_hand(site, NoiseAction("uniform", 0.2), join)
    layer = "with `self.noise = varshift.nn.UniformDropout(0.2)` in `__init__`."
    assert text.endswith(f": replace `{before}` by `{after}`, {layer}")
    assert edit_by_hand(site, NoiseAction("remove"), join).endswith(f"replace `{before}` by `{removed}`.")


def test_the_rate_of_a_mask_is_not_there_to_be_changed():
    with pytest.raises(Refused, match="no argument for a rate: put other noise in its place"):
        operate(made(Product), X, "lower-rate", factor=0.5)


def test_noise_that_acts_in_evaluation_stays_or_follows_its_module():
    class Always(Inline):
        def forward(self, x):
            x = self.layer(x)
            return x * kept(x) / 0.9

    swapped = operate(made(Always), X, "swap-noise", beta=0.2)
    assert swapped.proof.exact, swapped.proof.unexpected
    assert [site.kind for site in swapped.after.eval.noises] == ["uniform"]
    follows = operate(made(Always), X, "follow-mode")
    assert follows.proof.exact, follows.proof.unexpected
    assert [rate for *_, rate in follows.noises] == [0.1]
    assert follows.after.eval.noises == ()
    network = follows.network.eval()
    torch.testing.assert_close(network(X), network.layer(X))


def test_a_mask_that_is_not_rescaled_is_rescaled():
    operation = operate(made(NotRescaled), X, "rescale-noise")
    assert operation.proof.exact, operation.proof.unexpected
    assert [site.mean_factor for site in operation.after.train.noises] == [pytest.approx(1.0)]


def test_the_edit_is_written_down():
    (edit,) = operate(made(Augmented), X, "swap-noise", beta=0.2).edits
    assert read_edit(json.loads(json.dumps(edit.to_json()))) == edit
    assert (edit.chain[-1].text, edit.join) == ("x *= kept(x)", Join(0, 0.9))
