"""Calls of noise are rewritten in every form in which people write them, and nothing else changes."""

import copy
import pickle
from collections import Counter

import pytest
import rewrite_forms as forms
import torch
from rewritten import UNIFORM, X
from torch.utils.checkpoint import checkpoint
from treatment import saved

from varshift.fixes import NoiseAction, Refused, RewriteCall, Surgery, call_chain, edit_by_hand, prove
from varshift.flow import capture

names = [cls.__qualname__.rpartition(".")[2] for cls in forms.ONE]


def made(cls):
    torch.manual_seed(0)
    return cls()


def wanted(flows):
    """The noise at rate 0.5, and the other noise."""
    sites = flows.train.noises
    return [site for site in sites if site.rate != 0.25]


def noises(flows):
    return Counter((site.name, site.kind, site.rate) for site in flows.train.noises)


def edit_of(network, flows, action=UNIFORM):
    site = wanted(flows)[0]
    path, chain = call_chain(network, site)[0]
    return RewriteCall(site.id, path, chain, action)


@pytest.fixture(params=forms.ONE, ids=names)
def form(request):
    """A module, its captured flows, the module after an edit, and the surgery."""
    network = made(request.param)
    flows = capture(network, X)
    edited = made(request.param)
    surgery = Surgery(edited)
    edit_of(network, flows).apply(surgery)
    return network, flows, edited, surgery


def draws_alike(first, second, x=X):
    """Whether two modules compute the same in training, with the same random numbers."""
    results = []
    for network in (first, second):
        torch.manual_seed(3)
        results.append(network.train()(x))
    return torch.equal(*results)


def test_removed_or_replaced_and_nothing_else(form):
    network, flows, edited, surgery = form
    (site,) = wanted(flows)
    after = capture(edited, X)
    gone = noises(flows) - noises(after)
    assert sum(gone.values()) == 1
    assert len(after.train.noises) == len(flows.train.noises)
    assert prove(flows, after, [site.id]).unexpected == ()
    surgery.undo()
    edit_of(network, flows, NoiseAction("remove")).apply(surgery)
    after = capture(edited, X)
    assert noises(flows) - noises(after) == Counter({(site.name, site.kind, site.rate): 1})
    assert not noises(after) - noises(flows)
    assert prove(flows, after, [site.id]).unexpected == ()


def test_nothing_shows_from_outside(form):
    network, _, edited, surgery = form
    cls = type(network)
    assert list(edited.state_dict()) == list(network.state_dict())
    assert [name for name, _ in edited.named_modules()] == [name for name, _ in network.named_modules()]
    assert list(vars(edited)) == list(vars(network))
    assert isinstance(edited, cls)
    assert type(network) is cls
    assert (type(edited).__name__, type(edited).__qualname__) == (cls.__name__, cls.__qualname__)
    assert type(edited).__module__ == cls.__module__
    assert torch.equal(edited.eval()(X), network.eval()(X))
    assert not draws_alike(edited, network)
    surgery.undo()
    assert type(edited) is cls
    assert list(vars(edited)) == list(vars(network))
    assert draws_alike(edited, network)


def test_copies_keep_the_edit(form):
    network, _, edited, _ = form
    copies = [copy.deepcopy(edited), copy.copy(edited)]
    if "<locals>" not in type(network).__qualname__:  # which cannot be pickled before either
        copies += [pickle.loads(pickle.dumps(edited, protocol)) for protocol in (2, 4, 5)]
        copies.append(saved(edited))
    for other in copies:
        assert type(other) is type(edited)
        assert draws_alike(other, edited)


def test_gradients_under_checkpointing(form):
    _, _, edited, _ = form
    if isinstance(edited, forms.NoGrad):
        pytest.skip("there are no gradients")
    edited.train()
    runs = {
        "plain": lambda x: edited(x),
        "reentrant": lambda x: checkpoint(edited, x, use_reentrant=True),
        "not reentrant": lambda x: checkpoint(edited, x, use_reentrant=False),
    }
    gradients = {}
    for name, run in runs.items():
        edited.zero_grad()
        x = X.clone().requires_grad_()
        torch.manual_seed(5)
        run(x).square().sum().backward()
        gradients[name] = torch.cat([x.grad.flatten(), edited.get_parameter(first(edited)).grad.flatten()])
    for name in ("reentrant", "not reentrant"):
        torch.testing.assert_close(gradients[name], gradients["plain"], rtol=1e-6, atol=1e-6)


def first(network):
    return next(name for name, _ in network.named_parameters())


@pytest.mark.parametrize("cls", forms.ONE, ids=names)
def test_compiled_whole(cls):
    network, edited = made(cls), made(cls)
    edit_of(network, capture(network, X), NoiseAction("dropout", 0.3)).apply(Surgery(edited))
    if compiled(network) is None:
        pytest.skip("not compiled before the edit either")
    results = []
    for run in (compiled(edited), edited):
        torch.manual_seed(3)
        results.append(run(X))
    torch.testing.assert_close(*results)
    torch.testing.assert_close(compiled(edited.eval())(X), network.eval()(X))


def compiled(network):
    """The module compiled as a whole; None if it cannot be."""
    torch._dynamo.reset()
    run = torch.compile(network, fullgraph=True, backend="eager")
    try:
        run(X)
    except torch._dynamo.exc.TorchDynamoException:
        return None
    return run


def test_exported(form):
    network, _, edited, _ = form
    if isinstance(network, forms.JitIgnored):
        pytest.skip("not exported before the edit either")
    plain = torch.export.export(network.eval(), (X,), strict=False).module()(X)
    assert torch.equal(torch.export.export(edited.eval(), (X,), strict=False).module()(X), plain)
    torch.export.export(edited.train(), (X,), strict=False)


@pytest.mark.parametrize("cls", forms.GROUPS, ids=lambda cls: cls.__name__)
def test_one_call_of_several_sites_changes_them_together(cls):
    network = made(cls)
    flows = capture(network, X)
    assert len(wanted(flows)) == 2
    surgery = Surgery(network)
    edit_of(network, flows, NoiseAction("remove")).apply(surgery)
    assert wanted(capture(network, X)) == []


@pytest.mark.parametrize("cls", forms.REFUSED, ids=lambda cls: cls.__name__)
def test_refused(cls):
    network = made(cls)
    flows = capture(network, X)
    site = wanted(flows)[0]
    candidates = call_chain(network, site)
    assert (candidates == []) is (cls is forms.MaskArithmetic)
    for path, chain in candidates:
        with pytest.raises(Refused, match="self"):
            RewriteCall(site.id, path, chain, UNIFORM).apply(Surgery(network))
    assert type(network) is cls
    assert "rewrite_forms.py:" in edit_by_hand(site)
