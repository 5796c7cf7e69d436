"""Schedules, groups of parameters, and what is refused."""

import pytest
import torch
from torch import nn

from varshift_lab.data import Augmentation
from varshift_lab.training import TrainingSettings


def settings(**changes):
    return TrainingSettings(**{"epochs": 10, "batch_size": 8, "learning_rate": 2.0, **changes})


def rates(**changes):
    return [settings(**changes).rate(step, 20) for step in range(20)]


def test_steps_fall_at_their_share_of_training():
    assert rates(milestones=(0.15, 0.5), decay=0.1) == pytest.approx([2.0] * 3 + [0.2] * 7 + [0.02] * 10)


def test_milestones_of_whole_epochs_fall_on_their_first_step():
    # 164 epochs with milestones at 81 and 122, of 390 steps each
    made = settings(milestones=(81 / 164, 122 / 164))
    found = [made.rate(step, 164 * 390) for step in (81 * 390 - 1, 81 * 390, 122 * 390 - 1, 122 * 390)]
    assert found == pytest.approx([2, 0.2, 0.2, 0.02])


def test_warmup_rises_in_a_line_and_reaches_the_rate():
    assert rates(schedule="constant", warmup=0.2)[:6] == pytest.approx([0.5, 1, 1.5, 2, 2, 2])


def test_cosine_and_cycle_fall_to_nearly_zero():
    cosine, cycle = rates(schedule="cosine"), rates(schedule="cycle", warmup=0.2)
    assert cosine[0] == 2
    assert cosine[10] == pytest.approx(1)
    assert 0 < cosine[19] < 0.02
    assert cycle[4:] == pytest.approx([2 * (1 - step / 16) for step in range(16)])


def test_norms_and_biases_may_go_without_decay():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    model[0].weight.requires_grad_(True)
    one = settings(weight_decay=0.5).make_optimizer(model)
    assert [(len(group["params"]), group["weight_decay"]) for group in one.param_groups] == [(4, 0.5)]
    two = settings(weight_decay=0.5, decay_norms=False).make_optimizer(model)
    assert [(len(group["params"]), group["weight_decay"]) for group in two.param_groups] == [(1, 0.5), (3, 0)]
    model[0].requires_grad_(False)
    assert sum(len(group["params"]) for group in settings().make_optimizer(model).param_groups) == 2


@pytest.mark.parametrize(
    ("changes", "kind", "beta"),
    [
        ({}, torch.optim.SGD, None),
        ({"optimizer": "adam"}, torch.optim.Adam, 0.9),
        ({"optimizer": "adamw", "momentum": 0.5}, torch.optim.AdamW, 0.5),
    ],
)
def test_optimisers_by_name(changes, kind, beta):
    made = settings(**changes).make_optimizer(nn.Linear(2, 2))
    assert type(made) is kind
    assert made.defaults["lr"] == 2
    if beta is None:
        assert made.defaults["nesterov"]
    else:
        assert made.defaults["betas"] == (beta, 0.999)


def test_without_momentum_there_is_no_form_of_nesterov():
    made = settings(momentum=0.0).make_optimizer(nn.Linear(2, 2))
    assert made.defaults["momentum"] == 0
    assert not made.defaults["nesterov"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs=0 must be a whole number of at least 1"),
        ({"batch_size": 2.5}, "batch_size=2.5 must be a whole number"),
        ({"learning_rate": 0.0}, "learning_rate=0.0 must be above 0"),
        ({"learning_rate": float("nan")}, "learning_rate=nan must be finite"),
        ({"schedule": "linear"}, "schedule='linear' must be one of steps, cosine, constant, cycle"),
        ({"optimizer": "lion"}, "optimizer='lion' must be one of sgd, adam, adamw"),
        ({"order": "stored"}, "order='stored' must be one of reshuffle, single"),
        ({"milestones": (0.5, 1.5)}, r"milestones\[1\]=1.5 must be in \[0, 1\]"),
        ({"warmup": -0.1}, "warmup=-0.1 must be in"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0 must be at least 0"),
        ({"clip_norm": 0.0}, "clip_norm=0.0 must be above 0"),
        ({"probe_every": -1}, "probe_every=-1 must be"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        settings(**changes)


def test_settings_are_plain_values():
    assert settings(augmentation=Augmentation(pad=4)) == settings(augmentation=Augmentation(pad=4))
    assert hash(settings()) == hash(settings())
