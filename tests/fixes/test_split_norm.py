"""One norm for each call of a norm in a forward pass."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from treatment import codes, copies, digest, images, learnt, same, stack, treated

import varshift as vs
from varshift import SiteId
from varshift.fixes import NormPerCall, Refused, SplitNorm, Surgery

x = next(iter(images(shuffle=False)))[0]


class Views(nn.Module):
    """One norm for views of different contrast, called in a loop."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(16, 2)

    def tower(self, x):
        return torch.relu(self.norm(self.conv(x))).mean((2, 3))

    def forward(self, x):
        return self.head(torch.cat([self.tower(view) for view in (x, 0.1 * x + 3)], 1))


@pytest.fixture(scope="module")
def trained():
    return learnt(Views, epochs=10)


@pytest.fixture
def network(trained):
    return copy.deepcopy(trained)


def test_the_finding_is_gone_and_evaluation_computes_what_training_does(network):
    before = digest(network)
    cured = vs.fix(network, loader=images(), select=["VS403"])
    assert codes(cured.before) == ["VS403"]
    assert codes(cured.after) == []
    assert not cured.failures
    assert same(digest(network), before)
    norm = cured.model.norm
    assert isinstance(norm, NormPerCall)
    assert norm.norms[0].weight is norm.norms[1].weight
    small, large = sorted(float(one.running_var.mean()) for one in norm.norms)
    assert large > 10 * small
    assert cured.after.gap.states["eval"] < cured.before.gap.states["eval"]


def test_every_forward_pass_begins_with_the_first_norm(network):
    treated(network, x, "split-norm")
    network.train()
    spreads = [[], []]
    for place, norm in enumerate(network.norm.norms):
        norm.register_forward_hook(
            lambda _, args, __, place=place: spreads[place].append(float(args[0].detach().std()))
        )
    for _ in range(3):
        network(x[:4])
    assert [len(one) for one in spreads] == [3, 3]
    assert min(spreads[0]) > max(spreads[1])


def test_an_error_between_two_calls_does_not_move_the_turn(network):
    treated(network, x, "split-norm")
    norm = network.train().norm
    handle = norm.norms[1].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        network(x[:4])
    handle.remove()
    before = [int(one.num_batches_tracked) for one in norm.norms]
    network(x[:4])
    assert [int(one.num_batches_tracked) for one in norm.norms] == [count + 1 for count in before]


def pieces(reentrant):
    """Has every view's tower run again in the backward pass."""

    def wrap(network):
        tower = network.tower
        network.tower = lambda view: checkpoint(tower, view, use_reentrant=reentrant)
        return network

    return wrap


def whole(network):
    """Has the whole network run again in the backward pass."""
    return lambda x: checkpoint(network, x, use_reentrant=False)


@pytest.mark.parametrize("wrap", [pieces(False), pieces(True), whole])
def test_gradients_under_checkpointing_are_those_without(network, wrap):
    treated(network, x, "split-norm", shared=False)
    with torch.no_grad():
        network.norm.norms[1].weight.mul_(3)  # so that a call that takes the wrong norm shows
        for one in network.norm.norms:
            one.momentum = 0.0  # checkpointing updates statistics twice, as it does with any norm
    other = copy.deepcopy(network).train()
    network.train()
    batches = [x[:16].clone().requires_grad_() for _ in range(2)]
    again = [batch.detach().clone().requires_grad_() for batch in batches]
    run = wrap(other)
    # Two passes before one backward: what the first one saw must be known, still.
    sum((i + 1) * network(batch * (i + 1)).square().sum() for i, batch in enumerate(batches)).backward()
    sum((i + 1) * run(batch * (i + 1)).square().sum() for i, batch in enumerate(again)).backward()
    for one, two in zip(batches, again, strict=True):
        torch.testing.assert_close(two.grad, one.grad, atol=1e-6, rtol=1e-6)
    gradients = {name: one.grad for name, one in network.named_parameters()}
    for name, one in other.named_parameters():
        torch.testing.assert_close(one.grad, gradients[name], atol=1e-5, rtol=1e-5)
    assert not any(one.isnan().any() for one in gradients.values())


def test_copies_files_and_states_of_the_single_norm(network):
    single = digest(network)
    output = network.eval()(x)
    treated(network, x, "split-norm")
    torch.testing.assert_close(network.eval()(x), output, atol=1e-5, rtol=0)  # the same statistics, twice
    for other in copies(network):
        assert torch.equal(other(x), network(x))
        assert len(other._forward_pre_hooks) == 1
        assert next(iter(other._forward_pre_hooks.values())).__self__ is other.norm  # its own turn
    with torch.no_grad():
        network.norm.norms[1].running_mean.add_(1)
    network.load_state_dict({name: value for name, value in single.items() if name != "modes"})
    torch.testing.assert_close(network(x), output, atol=1e-5, rtol=0)


def test_every_copy_is_in_the_modes_of_its_norm():
    parts = nn.BatchNorm2d(8)
    parts.drop = nn.Dropout(0.2).eval()
    surgery = Surgery(nn.Sequential(parts))
    SplitNorm(SiteId("0", "batch_norm"), "0", "BatchNorm2d", 2).apply(surgery)
    norms = surgery.network[0]
    assert [module.training for module in (norms, *norms.norms)] == [True] * 3
    assert [norm.drop.training for norm in norms.norms] == [False] * 2
    surgery.undo()
    assert (parts.training, parts.drop.training) == (True, False)


def test_undo_takes_the_hook_of_the_network_back(network):
    before = digest(network)
    surgery, changes = treated(network, x, "split-norm", shared=False)
    assert len(surgery.added) == 2  # for the optimiser: weight and bias of the second norm
    assert [str(change.site) for change in changes] == ["norm:batch_norm"]
    surgery.undo()
    assert same(digest(network), before)
    assert not network._forward_pre_hooks


def test_attributes_of_the_norm_can_still_be_read(network):
    treated(network, x, "split-norm")
    assert network.norm.num_features == 8
    assert network.norm.weight.shape == (8,)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = network.norm.nonsense


def test_a_norm_that_is_called_once_stays():
    with pytest.raises(Refused, match="no norm is called more than once"):
        treated(stack(nn.BatchNorm2d(8)), x, "split-norm")


def test_the_number_of_calls_must_be_the_same_in_both_modes():
    class Uneven(Views):
        def forward(self, x):
            if self.training:
                return super().forward(x)
            return self.head(self.tower(x).repeat(1, 2))

    with pytest.raises(Refused, match="2 times in training and 1 times in evaluation"):
        treated(Uneven(), x, "split-norm")


def test_a_split_norm_is_compiled_whole_and_exported(network):
    treated(network, x, "split-norm")
    for one in network.norm.norms:
        one.running_mean.uniform_(-1, 1)
    compiled = torch.compile(copy.deepcopy(network), fullgraph=True, backend="eager")
    for mode in (True, False, True):
        expected = network.train(mode)(x)
        torch.testing.assert_close(compiled.train(mode)(x), expected, atol=1e-6, rtol=1e-6)
    exported = torch.export.export(network.eval(), (x,)).module()
    torch.testing.assert_close(exported(x), network(x), atol=1e-6, rtol=1e-6)
