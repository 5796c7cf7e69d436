"""The weight rescaling recipe: its treatment against the parts it is made of, and the matched rate."""

import json
import math
from dataclasses import replace

import pytest
import torch

from varshift.trials import Workbench, decode_trial, encode
from varshift_lab.data import Images, digit_images
from varshift_lab.recipes._weight_rescaling import RECIPE, _plan
from varshift_lab.recipes._weight_rescaling_treatment import (
    MatchedRateTrial,
    RescalingTreatment,
    _angles,
    _Watch,
)
from varshift_lab.studies import SCALES
from varshift_lab.training import TrainingTrial, fit

PLAN = _plan("smoke")
SETTINGS = replace(PLAN.settings, epochs=2, weight_decay=5e-4)
DATA = replace(PLAN.data, train=128, test=50)
SHAPE = (1, 8, 8)


def trained(treatment, settings=SETTINGS, workbench=None):
    images = digit_images().take(slice(0, 128))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = PLAN.network.build(images)
    return model, fit(model, images, settings, treatment=treatment, workbench=workbench)


def filter_norms(model, treatment):
    return torch.cat([weight.norm("filter").flatten() for weight in treatment._weights(model)])


@pytest.mark.parametrize("interval", [1, 2])
def test_filters_end_at_unit_norm(interval):
    treatment = RescalingTreatment(SHAPE, interval)
    model, history = trained(treatment)
    names = [weight.name for weight in treatment._weights(model)]
    # Both convolutions of each of three blocks and the stem; neither the shortcuts' nor the last layer.
    assert len(names) == 7
    assert "linear" not in names
    norms = filter_norms(model, treatment)
    torch.testing.assert_close(norms, torch.ones_like(norms))
    assert history.notes["norm"] == pytest.approx([1, 1])
    assert not torch.allclose(model.linear.weight.norm(dim=1), torch.ones(10), atol=0.01)


def test_without_an_interval_only_norms_are_watched():
    plain, _ = trained(None)
    watched, history = trained(RescalingTreatment(SHAPE, 0))
    for name, tensor in plain.state_dict().items():
        assert torch.equal(watched.state_dict()[name], tensor)
    assert history.notes["norm"][-1] > 1.1
    assert 0 < history.notes["angle"][-1] < 0.5


def test_only_what_is_rescaled_is_free_of_decay():
    treatment = RescalingTreatment(SHAPE)
    model = PLAN.network.build(digit_images())
    optimizer = SETTINGS.make_optimizer(model)
    before = sum(len(group["params"]) for group in optimizer.param_groups)
    treatment.attach(model, optimizer, SETTINGS)
    decays = {id(one): group["weight_decay"] for group in optimizer.param_groups for one in group["params"]}
    assert len(decays) == before
    rescaled = {id(weight.weight) for weight in treatment._weights(model)}
    for parameter in model.parameters():
        assert decays[id(parameter)] == (0 if id(parameter) in rescaled else 5e-4)


def test_angles_are_exact_where_cosines_round_to_one():
    turned = torch.tensor([[1.0, 1e-4], [0.0, 1.0]])
    expected = torch.tensor([1e-4, math.pi / 2])
    torch.testing.assert_close(_angles(turned, torch.tensor([[3.0, 0.0], [2.0, 0.0]])), expected)


def test_the_watch_sees_the_turn_of_a_step():
    layer = torch.nn.Linear(2, 1, bias=False)
    layer.weight.data = torch.tensor([[1.0, 0.0]])
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)

    class Weight:
        weight = layer.weight

    watch = _Watch([Weight()], optimizer)
    assert watch.mean() == 0
    for _ in range(8):  # the first is looked at, the others are not
        layer.weight.grad = torch.tensor([[0.0, 1.0]])
        optimizer.step()
    assert watch.mean() == pytest.approx(math.atan(0.1), rel=1e-5)
    assert watch.mean() == 0


def test_resumed_training_ends_at_the_same_weights(tmp_path):
    treatment = RescalingTreatment(SHAPE, 3)
    whole, history = trained(treatment)

    class StopError(Exception):
        pass

    def stop(event):
        if event.get("epoch") == 2:
            raise StopError

    with pytest.raises(StopError):
        trained(treatment, workbench=Workbench(folder=tmp_path, record=stop))
    resumed, again = trained(treatment, workbench=Workbench(folder=tmp_path))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor)
    assert again.notes == history.notes


def test_the_matched_rate(tmp_path):
    decayed = TrainingTrial(0, PLAN.network, DATA, SETTINGS, treatment=RescalingTreatment(SHAPE, 0))
    rescaled = replace(decayed, treatment=RescalingTreatment(SHAPE))
    bench = Workbench(folder=tmp_path)
    found = MatchedRateTrial(1, decayed, rescaled).run(bench)
    first = replace(decayed, seed=1).run(Workbench())
    assert found["decayed_norm"] == first["norm"]
    assert found["rate"] == pytest.approx(0.1 / first["norm"] ** 2)
    assert found["learning_rate_history"][0] == pytest.approx(found["rate"])
    assert found["norm"] == pytest.approx(1)
    assert found["pflop"] == pytest.approx(2 * first["pflop"])
    assert {path.name for path in tmp_path.iterdir()} == {"decayed", "rescaled"}
    again = MatchedRateTrial(1, decayed, rescaled).run(bench)
    assert again["test_error"] == found["test_error"]


@pytest.mark.parametrize("scale", SCALES)
def test_trials_are_plain_data(scale):
    trials = RECIPE.trials(scale)
    assert len({trial.key for trial in trials}) == len(trials)
    for trial in trials[::4]:
        assert decode_trial(json.loads(json.dumps(encode(trial)))) == trial


def test_every_quantity_is_measured():
    studies = [make("smoke") for make in (*RECIPE.tables.values(), *RECIPE.figures.values())]
    found = {}
    for series in (one for study in (*studies, *RECIPE.claims("smoke")) for one in study.series()):
        kind = type(series.trials[0])
        if kind not in found:
            found[kind] = shortened(series.trials[0]).run(Workbench())
        assert series.quantity in found[kind]


def shortened(trial):
    if isinstance(trial, MatchedRateTrial):
        return replace(trial, decayed=shortened(trial.decayed), rescaled=shortened(trial.rescaled))
    return replace(trial, data=DATA, settings=replace(trial.settings, epochs=1))


def test_the_papers_network():
    plan = _plan("paper")
    images = Images(torch.zeros(10, 3, 32, 32, dtype=torch.uint8), torch.arange(10))
    with torch.device("meta"):
        model = plan.network.build(images)
    convolutions = [one for one in model.modules() if isinstance(one, torch.nn.Conv2d)]
    norms = [one for one in model.modules() if isinstance(one, torch.nn.BatchNorm2d)]
    assert len(convolutions) == len(norms) == 13
    assert not [one for one in model.modules() if isinstance(one, torch.nn.Dropout)]
    assert plan.settings.weight_decay == 1e-4
    assert plan.decays == (0, 1e-4, 5e-4)
