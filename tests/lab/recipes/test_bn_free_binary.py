"""The recipe of binary networks without norms: two steps of training, clipping, the signal at the start."""

import json
from dataclasses import replace

import pytest
import torch

from varshift.trials import Workbench, decode_trial, encode
from varshift_lab.data import Images, digit_images
from varshift_lab.recipes._bn_free_binary import RECIPE, _cases
from varshift_lab.recipes._bn_free_binary_trials import BinaryTreatment, SignalTrial, TwoStepTrial
from varshift_lab.studies import SCALES
from varshift_lab.training import DataChoice, TrainingSettings

(CASE,) = _cases("smoke")
DATA = DataChoice("digits", train=64, test=50)
BENCH = Workbench()


def short(trial, epochs=1):
    if not isinstance(trial, TwoStepTrial):
        return replace(trial, size=32, samples=2)
    first = trial.first and replace(trial.first, epochs=epochs, batch_size=32)
    return replace(trial, data=DATA, first=first, second=replace(trial.second, epochs=epochs, batch_size=32))


def test_the_second_step_begins_with_the_weights_of_the_first(monkeypatch):
    from varshift_lab.recipes import _bn_free_binary_trials as trials

    seen = []

    def fit(model, *arguments, **options):
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        history = real(model, *arguments, **options)
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return history

    real = trials.fit
    monkeypatch.setattr(trials, "fit", fit)
    short(CASE.trial("free", 0.02)).run(BENCH)
    start, after_first, second, _ = seen
    assert any(not torch.equal(start[name], after_first[name]) for name in start)
    assert set(second) == set(after_first)
    for name, tensor in second.items():
        assert torch.equal(tensor, after_first[name]), name


@pytest.mark.parametrize("norm", ["free", "batch", "none"])
def test_both_steps_are_measured(norm, tmp_path):
    trial = short(CASE.trial(norm, 0.02))
    found = trial.run(Workbench(folder=tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {"step1", "step2"}
    assert len(found["train_loss_history"]) == len(found["first_train_loss_history"]) == 1
    alone = replace(trial, first=None).run(BENCH)
    assert "first_test_error" not in alone
    assert found["pflop"] > 1.5 * alone["pflop"]
    again = trial.run(Workbench(folder=tmp_path))
    assert again["test_loss"] == found["test_loss"]


def test_without_norms_both_modes_are_the_same_function():
    trial = short(CASE.trial("free", 0.02))
    model = trial._build(digit_images(), binary_weights=True)
    inputs = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model.train()(inputs), model.eval()(inputs))


def test_the_classifier_neither_decays_nor_is_clipped():
    settings = TrainingSettings(1, 8, 1.0, optimizer="sgd", momentum=0.0, weight_decay=0.1, decay_norms=False)
    model = CASE.trial("free", 0.02)._build(digit_images(), binary_weights=False)
    optimizer = settings.make_optimizer(model)
    BinaryTreatment(0.02).attach(model, optimizer, settings)
    decays = {id(one): group["weight_decay"] for group in optimizer.param_groups for one in group["params"]}
    assert len(decays) == len(list(model.parameters()))
    assert decays[id(model.linear.weight)] == 0
    convolution = next(one for one in model.modules() if isinstance(one, torch.nn.Conv2d))
    assert decays[id(convolution.weight)] == 0.1
    optimizer.param_groups[0]["weight_decay"] = 0.0
    before = {id(one): one.detach().clone() for one in model.parameters()}
    for one in model.parameters():
        one.grad = torch.full_like(one, 100.0)
    optimizer.step()
    moved = {id(one): (one.detach() - before[id(one)]).norm() for one in model.parameters()}
    clipped = 0.02 * before[id(convolution.weight)].flatten(1).norm(dim=1).clamp(min=1e-3).norm()
    torch.testing.assert_close(moved[id(convolution.weight)], clipped)
    assert float(moved[id(model.linear.weight)]) == pytest.approx(100 * model.linear.weight.numel() ** 0.5)


def test_the_signal_at_the_start():
    free, batch, none = (
        SignalTrial(0, norm, size=64, samples=4, width=8).run(BENCH) for norm in ("free", "batch", "none")
    )
    for found in (free, batch, none):
        assert len(found["variance"]) == len(found["squared_mean"]) == 14
        assert found["last_variance"] == found["variance"][-1]
    assert batch["squared_mean"][0] == pytest.approx(0, abs=1e-9)
    assert batch["variance"][0] == pytest.approx(1, abs=1e-3)
    # What the method holds near 1 is the second moment; batch norm lets it grow along the trunk.
    assert free["second_moment"][3] == free["squared_mean"][3] + free["variance"][3]
    assert max(free["second_moment"]) < 1.3
    assert batch["last_squared_mean"] > 10
    assert none["last_squared_mean"] > 10


@pytest.mark.parametrize("scale", SCALES)
def test_trials_are_plain_data(scale):
    trials = RECIPE.trials(scale)
    assert len({trial.key for trial in trials}) == len(trials)
    for trial in trials:
        assert decode_trial(json.loads(json.dumps(encode(trial)))) == trial


def test_every_quantity_is_measured():
    studies = [make("smoke") for make in (*RECIPE.tables.values(), *RECIPE.figures.values())]
    found = {}
    for series in (one for study in (*studies, *RECIPE.claims("smoke")) for one in study.series()):
        kind = type(series.trials[0])
        if kind not in found:
            found[kind] = short(series.trials[0]).run(BENCH)
        assert series.quantity in found[kind]


def test_the_papers_networks():
    images = Images(torch.zeros(10, 3, 32, 32, dtype=torch.uint8), torch.arange(10))
    counted = {}
    for case in _cases("paper"):
        with torch.device("meta"):
            model = case.trial("free", 0.02)._build(images, binary_weights=True)
        counted[case.title] = sum(one.numel() for one in model.parameters())
    # The reported 11.18 million of ReActNet-18 with ten classes; 29.33 of ReActNet-A has a thousand.
    assert counted["ReActNet-18", "CIFAR-10"] == pytest.approx(11.18e6, abs=5e3)
    assert counted["ReActNet-A", "CIFAR-10"] == pytest.approx(29.33e6 - 990 * 1025, abs=5e3)
