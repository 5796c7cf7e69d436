"""Trials that train, and what is measured of the network."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

import varshift as vs
from varshift import theory
from varshift.trials import TrialError, Workbench, decode, encode
from varshift_lab.data import EpochLoader
from varshift_lab.training import (
    DataChoice,
    Network,
    TrainingSettings,
    TrainingTrial,
    Treatment,
    adjusted,
    errors,
    find_measure,
    geometry,
    measure,
    shift,
)


@measure("double of the seed")
def double(network, train, test, workbench, settings):
    return {"double": 2.0 * len(train)}


@measure("not finite")
def broken(network, train, test, workbench, settings):
    return {"curve": [1.0, [math.nan]]}


@dataclass(frozen=True)
class Scaled(Treatment):
    scale: float

    def prepare(self, model):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter *= self.scale


TRIAL = TrainingTrial(
    seed=1,
    network=Network.of("preresnet", depth=8, width=4, dropout=0.5, placement="a", block="basic"),
    data=DataChoice("digits", train=128, test=64),
    settings=TrainingSettings(epochs=2, batch_size=32, learning_rate=0.1),
    measures=("errors", "adjusted", "shift", "geometry"),
)


@pytest.fixture(scope="module")
def found():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield TRIAL.run(Workbench())
    torch.set_num_threads(before)


def test_a_trial_survives_the_store():
    trial = replace(TRIAL, treatment=Scaled(0.5), measures=("errors", "double of the seed"))
    assert trial.measures == ("errors", f"{__name__}:double")  # found again where nobody registered it
    again = decode(encode(trial))
    assert again == trial
    assert again.key == trial.key != TRIAL.key
    assert find_measure(again.measures[1]) is double
    assert trial.title.startswith("preresnet(block=basic, depth=8")


def test_a_trial_measures_what_it_was_asked_for(found):
    assert len(found["train_loss_history"]) == len(found["train_error_history"]) == 2
    assert {"test_error", "adjusted_test_error", "shift", "d_cos2", "seconds", "pflop"} <= set(found)
    assert found["pflop"] > 0
    assert 0 <= found["test_error"] <= 100
    assert len(found["shift"]) == len(found["ratio"]) == 7
    # dropout stands in front of the second norm of each branch; the first is the stem's
    assert found["shift_first"] == found["shift"][1] > 1.1
    assert found["shift_mean"] == pytest.approx(sum(found["shift"]) / 7)


def test_a_trial_is_repeatable_and_its_seed_decides(found):
    torch.manual_seed(99)
    short = replace(TRIAL, measures=())
    runs = [replace(short, seed=seed).run(Workbench())["train_loss_history"] for seed in (1, 2)]
    assert runs[0] == found["train_loss_history"] != runs[1]


def test_the_shift_is_that_of_a_check():
    train, test = TRIAL.data.load(Workbench())
    torch.manual_seed(0)
    network = TRIAL.network.build(train)
    found = shift(network, train, test, Workbench(), TRIAL.settings)
    report = vs.check(network, EpochLoader(train, 32), max_batches=4)
    assert found["ratio"] == pytest.approx([layer.ratio for layer in report.layers], rel=0.05)
    quiet = Network.of("preresnet", depth=8, width=4, block="basic").build(train)
    assert "shift_first" not in shift(quiet, train, test, Workbench(), TRIAL.settings)
    plain = Network.of("preresnet", depth=8, width=4, block="basic", norm="none").build(train)
    assert shift(plain, train, test, Workbench(), TRIAL.settings) == {}


def test_adjusting_leaves_the_network_as_it_was():
    train, test = TRIAL.data.load(Workbench())
    network = TRIAL.network.build(train)
    for _ in range(30):
        network(train.normalised()[:32])
    before = {name: value.clone() for name, value in network.state_dict().items()}
    plain = errors(network, train, test, Workbench(), TRIAL.settings)
    found = adjusted(network, train, test, Workbench(), TRIAL.settings)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert set(found) == {f"adjusted_{name}" for name in plain if "train_mode" not in name}
    assert found["adjusted_test_loss"] != plain["test_loss"]
    vs.recalibrate(network, EpochLoader(train, 32))
    cured = errors(network, train, test, Workbench(), TRIAL.settings)
    assert cured["test_loss"] == pytest.approx(found["adjusted_test_loss"], rel=0.02)


def test_the_geometry_is_that_of_the_theory():
    train, test = TRIAL.data.load(Workbench())
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 3, (1, 2)))
    with torch.no_grad():
        network[0].weight[0] = 0.0  # a dead filter has no angle
    found = geometry(network, train, test, Workbench(), TRIAL.settings)
    alive = theory.cosine_squared(network[0].weight[1].flatten().tolist())
    second = [theory.cosine_squared(one) for one in network[1].weight.flatten(1).tolist()]
    expected = [alive, sum(second) / 3]
    assert found["cos2_layers"] == pytest.approx(expected)
    assert found["width_layers"] == [9, 4]
    assert found["d_cos2_layers"] == pytest.approx([9 * expected[0], 4 * expected[1]])
    assert found["cos2"] == pytest.approx(sum(expected) / 2)
    assert found["d_cos2"] == pytest.approx((9 * expected[0] + 4 * expected[1]) / 2)
    assert geometry(nn.Linear(2, 2), train, test, Workbench(), TRIAL.settings) == {}


def test_what_is_not_finite_is_no_result():
    with pytest.raises(TrialError, match="curve is not finite after 2 epochs"):
        replace(TRIAL, measures=("not finite",)).run(Workbench())


def test_unknown_measures_are_refused():
    with pytest.raises(ValueError, match=r"measure=.error. is unknown: use one of .*errors"):
        replace(TRIAL, measures=("error",))
    with pytest.raises(ValueError, match="measure='nowhere:x' cannot be imported"):
        replace(TRIAL, measures=("nowhere:x",))
    with pytest.raises(ValueError, match="name='errors' is the measure varshift_lab"):
        measure("errors")(double)
