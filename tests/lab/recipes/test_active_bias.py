"""The Active Bias recipe: what its treatments do to training, and that its trials measure what it shows."""

import json
from dataclasses import replace

import pytest
import torch

from varshift.trials import Workbench, decode_trial, encode
from varshift_lab.data import Images, digit_images, subset, with_label_noise
from varshift_lab.recipes._active_bias import RECIPE, _plan
from varshift_lab.recipes._active_bias_treatment import (
    ActiveBiasTreatment,
    UniformSampler,
    UniformTreatment,
)
from varshift_lab.studies import SCALES
from varshift_lab.training import TrainingSettings, fit

SETTINGS = TrainingSettings(epochs=3, batch_size=16, learning_rate=0.05)
IMAGES = with_label_noise(subset(digit_images(), 80), 0.25)


def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))


def weights_after(treatment, settings=SETTINGS, workbench=None):
    model = network()
    history = fit(model, IMAGES, settings, treatment=treatment, workbench=workbench)
    return model[1].weight.detach(), history


def test_during_the_burn_in_nothing_differs():
    plain, _ = weights_after(None)
    burning, _ = weights_after(ActiveBiasTreatment(burn_in=3))
    torch.testing.assert_close(burning, plain)
    differing, _ = weights_after(ActiveBiasTreatment(burn_in=2))
    assert not torch.allclose(differing, plain)


def test_the_weighted_loss_is_that_of_the_formula():
    treatment = ActiveBiasTreatment("threshold", burn_in=0, smoothing=0.1)
    state = treatment.remember(IMAGES, SETTINGS)
    ids, labels = torch.tensor([3, 5]), torch.tensor([0, 1])
    outputs = torch.tensor([[2.0, 0.0], [0.0, -1.0]])
    chances = outputs.softmax(1)[torch.arange(2), labels]
    losses = -chances.log()
    for _ in range(2):  # histories of fewer than two values give no score
        torch.testing.assert_close(treatment.loss(outputs, labels, ids, state), losses.mean())
    scores = chances * (1 - chances) + 0.1
    expected = (losses * scores / scores.mean()).mean()
    torch.testing.assert_close(treatment.loss(outputs, labels, ids, state), expected)


def test_importance_undoes_what_sampling_does():
    treatment = ActiveBiasTreatment("difficulty", "importance", burn_in=0, smoothing=0.1)
    state = treatment.remember(IMAGES, SETTINGS)
    everyone = torch.arange(len(IMAGES))
    for _ in range(2):
        state.bias.record(everyone, probabilities=torch.linspace(0, 1, len(IMAGES)))
    sampler = treatment.sampler(IMAGES, SETTINGS, 0, state)
    drawn = torch.tensor(list(sampler))
    # The sampler prefers difficult samples, which are the first ones.
    assert float(drawn.double().mean()) < 0.8 * (len(IMAGES) - 1) / 2
    outputs, labels = torch.zeros(len(IMAGES), 10), torch.zeros(len(IMAGES), dtype=torch.int64)
    weights = sampler.importance_weights(everyone)
    loss = treatment.loss(outputs, labels, everyone, state)
    torch.testing.assert_close(loss, weights.mean() * torch.tensor(10.0).log())
    expected = (sampler.probabilities().float() * weights).sum()
    torch.testing.assert_close(expected, torch.tensor(1.0))


@pytest.mark.parametrize("use", ["weights", "sampling", "importance"])
def test_resumed_training_ends_at_the_same_weights(use, tmp_path):
    treatment = ActiveBiasTreatment("difficulty", use, burn_in=1)
    whole, history = weights_after(treatment)

    class StopError(Exception):
        pass

    def stop(event):
        if event.get("epoch") == 2:
            raise StopError

    with pytest.raises(StopError):
        weights_after(treatment, workbench=Workbench(folder=tmp_path, record=stop))
    resumed, again = weights_after(treatment, workbench=Workbench(folder=tmp_path))
    assert torch.equal(resumed, whole)
    assert again.notes == history.notes


def test_wrong_labels_count_more_by_difficulty():
    settings = replace(SETTINGS, epochs=12)
    _, difficulty = weights_after(ActiveBiasTreatment("difficulty", burn_in=1), settings)
    _, easiness = weights_after(ActiveBiasTreatment("easiness", burn_in=1), settings)
    assert difficulty.notes["wrong_weight"][0] == 1
    assert difficulty.notes["wrong_weight"][-1] > 1 > easiness.notes["wrong_weight"][-1]
    right = subset(digit_images(), 80)
    treatment = ActiveBiasTreatment()
    assert treatment.note(network(), right, treatment.remember(right, settings)) == {}


def test_uniform_draws():
    sampler = UniformSampler(200, seed=1)
    first, second = torch.tensor(list(sampler)), torch.tensor(list(sampler))
    assert len(sampler) == len(first) == 200
    assert not torch.equal(first, second)
    assert len(first.unique()) < 160
    sampler.set_epoch(0)
    assert torch.equal(torch.tensor(list(sampler)), first)
    treatment = UniformTreatment()
    assert isinstance(treatment.sampler(IMAGES, SETTINGS, 0, None), UniformSampler)


@pytest.mark.parametrize("scale", SCALES)
def test_trials_are_plain_data(scale):
    trials = RECIPE.trials(scale)
    assert len({trial.key for trial in trials}) == len(trials)
    for trial in trials[::5]:
        assert decode_trial(json.loads(json.dumps(encode(trial)))) == trial


def test_every_quantity_is_measured():
    studies = [make("smoke") for make in (*RECIPE.tables.values(), *RECIPE.figures.values())]
    found = {}
    for series in (one for study in (*studies, *RECIPE.claims("smoke")) for one in study.series()):
        trial = series.trials[0]
        if trial not in found:
            short = replace(trial.settings, epochs=2)
            few = replace(trial.data, train=128, test=50)
            found[trial] = replace(trial, settings=short, data=few).run(Workbench())
        assert series.quantity in found[trial]


def test_the_papers_network():
    images = Images(torch.zeros(10, 3, 32, 32, dtype=torch.uint8), torch.arange(10))
    with torch.device("meta"):
        model = _plan("paper").network.build(images)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(1.0e6, rel=0.05)
    assert len(RECIPE.trials("paper")) == 5 * (5 * 4 + 5)
