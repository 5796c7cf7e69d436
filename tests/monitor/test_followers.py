"""Networks whose weights follow those of one that trains, watched next to it (VS205)."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

import varshift as vs

BATCHES = [torch.randn(32, 6, generator=torch.Generator().manual_seed(n)) * 2 + 1 for n in range(16)]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 12),
        nn.BatchNorm1d(12),
        nn.ReLU(),
        nn.Linear(12, 12),
        nn.BatchNorm1d(12),
        nn.Linear(12, 3),
    )


def warmed() -> nn.Module:
    net = network()
    update_bn([0.3 * batch for batch in BATCHES], net)
    return net


def train(
    net, follower, follow, *, before=False, epochs=2, end=None, optimizer=True, watched=None, **settings
):
    """Trains `net`; `follow` is called after each step, before or after the watch takes note of it."""
    optim = torch.optim.SGD(net.parameters(), lr=0.3, momentum=0.9)
    found = []
    given = {"optimizer": optim} if optimizer else {}
    model, reference = watched or (net, follower)
    target = torch.arange(32) % 3
    with vs.watch(
        model,
        reference=reference,
        on_finding=found.append,
        strict=True,
        select=["VS205"],
        **given,
        **settings,
    ) as watch:
        for _ in range(epochs):
            net.train()
            for batch in BATCHES:
                optim.zero_grad()
                nn.functional.cross_entropy(net(batch), target).backward()
                optim.step()
                if before:
                    follow()
                watch.step()
                if not before:
                    follow()
            if end is not None:
                end()
                watch.look()
    return found


def forms(found):
    return [one.evidence["form"] for one in found]


def ema(net, **settings):
    return AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9), **settings)


def lerp(follower, net, *, buffers=False):
    def follow():
        with torch.no_grad():
            mine, theirs = follower.state_dict(), net.state_dict()
            names = mine if buffers else [name for name, _ in follower.named_parameters()]
            for name in names:
                if mine[name].is_floating_point():
                    mine[name].lerp_(theirs[name], 0.1)

    return follow


@pytest.mark.parametrize("before", [True, False], ids=["before the watch", "after it"])
@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("optimizer", [True, False])
def test_an_average_with_copied_buffers_is_named_at_the_end(before, every, optimizer):
    net = network()
    follower = ema(net)
    found = train(
        net,
        follower,
        lambda: follower.update_parameters(net),
        before=before,
        every=every,
        optimizer=optimizer,
    )
    assert forms(found) == ["equal"]
    assert found[0].message.startswith("AveragedModel: ")
    assert {site.id.module for site in found[0].sites} == {"1", "4"}
    assert found[0].confidence == "certain"


def test_copies_at_the_end_of_an_epoch_are_remembered():
    net = network()
    follower = AveragedModel(net)
    found = train(net, follower, lambda: None, epochs=3, end=lambda: follower.update_parameters(net))
    assert "equal" in forms(found)


def test_an_average_that_takes_the_buffers_along_is_silent():
    net = network()
    follower = ema(net, use_buffers=True)
    assert not train(net, follower, lambda: follower.update_parameters(net))


@pytest.mark.parametrize("build", [network, warmed])
def test_an_average_over_parameters_only_leaves_its_statistics_behind(build):
    net = build()
    follower = copy.deepcopy(net).eval().requires_grad_(False)
    (finding,) = train(net, follower, lerp(follower, net))
    assert finding.evidence["form"] == ("defaults" if build is network else "left")
    assert finding.severity in ("error", "warning")


def test_an_average_over_the_state_dict_is_silent():
    net = warmed()
    follower = copy.deepcopy(net).eval()
    assert not train(net, follower, lerp(follower, net, buffers=True))


@pytest.mark.parametrize("copies", [True, False])
def test_an_average_that_is_recalibrated_before_it_is_looked_at_is_silent(copies):
    net = warmed()
    follower = ema(net) if copies else copy.deepcopy(net)
    follow = (lambda: follower.update_parameters(net)) if copies else lerp(follower, net)
    assert not train(net, follower, follow, end=lambda: update_bn(BATCHES, follower))


def test_a_target_network_that_is_loaded_now_and_then_is_a_copy_and_silent():
    net = network()
    target = copy.deepcopy(net)
    assert not train(
        net, target, lambda: None, epochs=3, end=lambda: target.load_state_dict(net.state_dict())
    )


def test_the_watched_network_may_be_the_one_that_follows():
    net = warmed()
    follower = copy.deepcopy(net).eval().requires_grad_(False)

    def follow():
        with torch.no_grad():
            for mine, theirs in zip(follower.parameters(), net.parameters(), strict=True):
                mine.lerp_(theirs, 0.1)
            for mine, theirs in zip(follower.buffers(), net.buffers(), strict=True):
                mine.copy_(theirs)

    found = train(net, follower, follow, before=True, watched=(follower, net))
    assert forms(found) == ["equal"]


def test_a_watched_average_that_is_recalibrated_before_it_is_looked_at_is_silent():
    net = warmed()
    average = ema(net)
    found = train(
        net,
        average,
        lambda: average.update_parameters(net),
        watched=(average, net),
        end=lambda: update_bn(BATCHES, average),
    )
    assert not found


def test_two_networks_that_train_do_not_follow_one_another():
    net, other = network(), network()
    optimizer = torch.optim.SGD([*net.parameters(), *other.parameters()], lr=0.1)
    found = []
    with vs.watch(net, reference=other, optimizer=optimizer, on_finding=found.append, strict=True) as watch:
        for batch in BATCHES:
            optimizer.zero_grad()
            (net(batch) - 2 * other(0.1 * batch)).square().mean().backward()
            optimizer.step()
            watch.step()
    assert "VS205" not in [finding.code for finding in found]


def test_statistics_left_behind_for_long_are_told_during_training(monkeypatch):
    from varshift.monitor import _watch

    monkeypatch.setattr(_watch, "_LEFT_BEHIND", 8)
    net = warmed()
    follower = copy.deepcopy(net)
    follow, seen = lerp(follower, net), []
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    watch = vs.watch(net, reference=follower, optimizer=optimizer, on_finding=seen.append, strict=True)
    for batch in BATCHES * 2:
        optimizer.zero_grad()
        net(batch).square().mean().backward()
        optimizer.step()
        watch.step()
        follow()
    assert [(one.code, one.evidence["form"]) for one in seen] == [("VS205", "left")]
