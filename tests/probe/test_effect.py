"""What recalibrate says of itself: the effect on held-back batches, frozen norms, and the mark it leaves."""

from __future__ import annotations

import copy
import io
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import varshift as vs
from varshift.model import find_norms, origins
from varshift.probe import Effect


def data(count=12, size=32):
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(4, (count * size,), generator=generator)
    x = 2 * torch.eye(4)[y] @ torch.randn(4, 8, generator=generator)
    x = x + 2 * torch.randn(count * size, 8, generator=generator)
    return list(zip(x.split(size), y.split(size), strict=True))


def network(p=0.5):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(p), nn.Linear(32, 32), nn.BatchNorm1d(32),
        nn.ReLU(), nn.Linear(32, 4),
    )  # fmt: skip


def trained(mode=True, steps=12):
    model, batches = network(), data()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    model.train(mode)
    for _ in range(steps):
        for x, y in batches:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model, batches


def eval_loss(model, batches):
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        sums = [F.cross_entropy(model(x), y, reduction="sum") for x, y in batches]
    return float(sum(sums)) / sum(len(y) for _, y in batches)


def stale():
    model, batches = trained()
    for index in (1, 5):
        model[index].running_var.mul_(30)
    return model, batches


def test_the_effect_is_that_of_statistics_that_have_not_seen_the_batches():
    model, batches = stale()
    held = [batch for number, batch in enumerate(batches) if number % 3 == 1]
    rest = [batch for number, batch in enumerate(batches) if number % 3 != 1]
    other = copy.deepcopy(model)
    before = eval_loss(model, held)
    effect = vs.recalibrate(model, batches).effect
    vs.recalibrate(other, [x for x, _ in rest])
    assert (effect.batches, effect.samples) == (4, 128)
    assert effect.before == pytest.approx(before, rel=1e-5)
    assert effect.after == pytest.approx(eval_loss(other, held), rel=1e-4)
    assert effect.delta == effect.after - effect.before < 0
    assert effect.stderr > 0
    assert not effect.worse


def test_statistics_are_the_same_with_and_without_an_effect():
    model, batches = stale()
    without = copy.deepcopy(model)
    assert vs.recalibrate(model, batches).effect is not None
    assert vs.recalibrate(without, [x for x, _ in batches]).effect is None
    for one, other in zip(model.buffers(), without.buffers(), strict=True):
        assert torch.equal(one, other)


def test_a_loader_is_gone_through_once():
    model, batches = stale()
    drawn = []

    def loader():
        for number, batch in enumerate(batches):
            drawn.append(number)
            yield batch

    effect = vs.recalibrate(model, loader()).effect
    assert drawn == list(range(len(batches)))
    assert effect.batches == 2  # of twelve, every fifth


def test_weights_that_were_trained_on_the_stored_statistics_are_warned_of():
    model, batches = trained(mode=False)
    good = eval_loss(model, batches)
    with pytest.warns(vs.VarshiftWarning, match=r"worse.*handle\.undo"):
        handle = vs.recalibrate(model, batches)
    assert handle.effect.worse
    assert eval_loss(model, batches) > 1.5 * good
    handle.undo()
    assert eval_loss(model, batches) == good


def test_nothing_is_changed_where_warnings_are_errors():
    model, batches = trained(mode=False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(vs.VarshiftWarning):
            vs.recalibrate(model, batches)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_loss_of_the_users_own_counts():
    model, batches = stale()
    calls = []

    def loss(outputs, targets):
        calls.append(len(targets))
        return (outputs.argmax(1) != targets).float().mean()

    effect = vs.recalibrate(model, batches, loss=loss).effect
    assert len(calls) == 2 * effect.batches
    assert 0 <= effect.after < effect.before <= 1


def test_a_loss_of_the_users_own_that_fails_is_an_error_and_changes_nothing():
    model, batches = stale()
    before = model[1].running_var.clone()
    with pytest.raises(vs.ModelError, match="loss= failed"):
        vs.recalibrate(model, batches, loss=lambda outputs, targets: outputs.nothing)
    assert torch.equal(model[1].running_var, before)
    with pytest.raises(ValueError, match="ask for data"):
        vs.recalibrate(model, shape=(8,), loss=F.cross_entropy)


def test_targets_that_fit_no_loss_leave_the_effect_unknown():
    model, batches = stale()
    handle = vs.recalibrate(model, [(x, torch.rand(len(x), 7)) for x, _ in batches])
    assert handle.effect is None
    assert all(layer.updated for layer in handle.layers)


@pytest.mark.parametrize(
    ("effect", "worse"),
    [
        (Effect(1.0, 1.2, 0.02, 8, 256), True),
        (Effect(1.0, 1.2, 0.11, 8, 256), False),  # within its error
        (Effect(1.0, 1.2, 0.06, 3, 96), False),  # few batches say little about their error
        (Effect(1.0, 1.15, 0.001, 2, 64), False),
        (Effect(1.0, 1.5, 0.01, 2, 64), True),
        (Effect(1.0, 1.5, None, 1, 32), False),  # one says nothing
        (Effect(1.0, 3.0, None, 1, 32), True),
        (Effect(1.0, 1.02, 0.001, 8, 256), False),  # nobody would act on it
        (Effect(1e-4, 5e-4, 1e-5, 8, 256, scale=0.01), False),
        (Effect(1.0, 0.5, 0.01, 8, 256), False),
        (Effect(float("nan"), 0.5, None, 1, 32), False),
        (Effect(0.5, float("nan"), None, 1, 32), True),
    ],
)
def test_worse_is_beyond_the_error_and_worth_acting_on(effect, worse):
    assert effect.worse is worse


@pytest.mark.parametrize(
    ("effect", "better"),
    [
        (Effect(1.0, 0.8, 0.02, 8, 256), True),
        (Effect(1.0, 0.8, 0.11, 8, 256), False),  # within its error
        (Effect(1.0, 0.8, 0.04, 4, 128), False),  # few batches say little about their error
        (Effect(1.0, 0.98, 0.001, 8, 256), True),  # statistics cost nothing
        (Effect(1.0, 0.2, None, 1, 32), False),  # one says nothing
        (Effect(1.0, 1.5, 0.01, 8, 256), False),
        (Effect(float("nan"), 0.5, None, 1, 32), True),
        (Effect(0.5, float("nan"), None, 1, 32), False),
    ],
)
def test_better_is_beyond_the_error(effect, better):
    assert effect.better is better


def test_one_batch_alone_is_not_held_back():
    model, batches = stale()
    assert vs.recalibrate(copy.deepcopy(model), batches[:1]).effect is None
    effect = vs.recalibrate(model, batches[:2]).effect
    assert (effect.batches, effect.stderr) == (1, None)
    assert not effect.worse


# -- frozen norms ---------------------------------------------------------------------------------------


def without_gradient(model):
    for parameter in model[1].parameters():
        parameter.requires_grad_(False)


def passed_in_eval(model):
    model.train()
    model[1].eval()


def held_in_eval(model):
    model[1].train = lambda mode=True: model[1]
    model[1].training = False


@pytest.mark.parametrize("freeze", [without_gradient, passed_in_eval, held_in_eval])
def test_frozen_norms_keep_their_statistics_unless_asked_for(freeze):
    model, batches = stale()
    freeze(model)
    before = model[1].running_var.clone()
    handle = vs.recalibrate(model, batches)
    assert torch.equal(model[1].running_var, before)
    assert list(handle.skipped) == ["1"]
    handle.undo()
    handle = vs.recalibrate(model, batches, frozen=True)
    assert handle.skipped == {}
    assert float(model[1].running_var.mean()) < float(before.mean()) / 10


def test_what_follows_a_frozen_norm_gets_the_statistics_of_the_deployed_network():
    model, batches = stale()
    without_gradient(model)
    vs.recalibrate(model, batches)
    with torch.no_grad():
        seen = torch.cat([copy.deepcopy(model).eval()[:5](x) for x, _ in batches])
    torch.testing.assert_close(model[5].running_var, seen.var(0), rtol=1e-4, atol=1e-6)


def test_a_network_that_is_frozen_as_a_whole_is_recalibrated():
    model, batches = stale()
    model.requires_grad_(False).eval()
    assert vs.recalibrate(model, batches).skipped == {}


# -- marks ----------------------------------------------------------------------------------------------


def test_the_mark_goes_where_the_statistics_go_and_not_where_they_change():
    model, batches = trained()
    assert origins(find_norms(model)) == {}
    vs.recalibrate(model, batches)
    marked = {"1": "measured", "5": "measured"}
    assert origins(find_norms(model)) == marked
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = network()
    other.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert origins(find_norms(other)) == marked
    assert origins(find_norms(copy.deepcopy(model).double())) == {}  # other bits
    other.train()(batches[0][0])
    assert origins(find_norms(other)) == {}
    vs.recalibrate(model, batches, noise=True)
    assert origins(find_norms(model)) == {}  # as training leaves them


def test_a_second_recalibration_without_data_changes_nothing():
    model, batches = trained(steps=40)
    first = vs.recalibrate(model, shape=(8,))
    assert [layer.name for layer in first.layers if layer.updated] == ["5"]
    cured = {name: value.clone() for name, value in model.state_dict().items()}
    again = vs.recalibrate(model, shape=(8,))
    assert not any(layer.updated for layer in again.layers)
    assert "without noise already" in again.skipped["5"]
    assert all(torch.equal(value, cured[name]) for name, value in model.state_dict().items())
    vs.recalibrate(model, batches)
    after = {name: value.clone() for name, value in model.state_dict().items()}
    assert not any(layer.updated for layer in vs.recalibrate(model, shape=(8,)).layers)
    assert all(torch.equal(value, after[name]) for name, value in model.state_dict().items())
