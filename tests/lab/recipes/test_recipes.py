"""What holds for every recipe: studies can be built at every scale, trials stored, networks built."""

from dataclasses import replace

import pytest
import torch

from varshift.trials import Workbench, decode, encode
from varshift_lab.recipes import recipe, recipe_names
from varshift_lab.recipes._dropout_variance_signal import SignalTrial
from varshift_lab.studies import SCALES
from varshift_lab.training import TrainingTrial

NAMES = recipe_names()


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", NAMES)
def test_studies_go_by_their_names_and_ask_for_trials(name, scale):
    found = recipe(name)
    made = {key: make(scale) for key, make in {**found.tables, **found.figures}.items()}
    assert {key: study.name for key, study in made.items()} == {key: key for key in made}
    assert not set(found.tables) & set(found.figures)
    for study in made.values():
        assert all(one.trials for one in study.series())
    if found.claims is not None:
        texts = [claim.text for claim in found.claims(scale)]
        assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("name", NAMES)
def test_claims_pair_equal_seeds(name):
    found = recipe(name)
    for scale in SCALES:
        for claim in found.claims(scale) if found.claims is not None else ():
            lower, higher = ([trial.seed for trial in one.trials] for one in (claim.lower, claim.higher))
            assert lower == higher
            assert len(set(lower)) == len(lower) >= 2


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", NAMES)
def test_trials_survive_the_way_through_a_store(name, scale):
    trials = recipe(name).trials(scale)
    assert [decode(encode(trial)) for trial in trials] == trials
    assert len({trial.key for trial in trials}) == len(trials)


@pytest.mark.parametrize("name", NAMES)
def test_the_papers_networks_can_be_built(name):
    """On the meta device: shapes without memory."""
    channels = {"digits": 1, "fashion_mnist": 1}
    networks = {
        (trial.network, trial.data.name)
        for trial in recipe(name).trials("paper")
        if isinstance(trial, TrainingTrial)
    }
    for network, data in networks:
        images = Shape(channels.get(data, 3), {"cifar100": 100, "imagenet": 1000}.get(data, 10))
        with torch.device("meta"):
            built = network.build(images)
        assert sum(parameter.numel() for parameter in built.parameters()) > 0


@pytest.mark.parametrize("name", ["variance-shift", "dropout-variance-init", "residual-position"])
def test_what_is_shown_is_measured(name):
    """One trial of each kind is run, cut short; the others of that kind measure the same."""
    found, measured = recipe(name), {}
    studies = [make("smoke") for make in (*found.tables.values(), *found.figures.values())]
    for one in (series for study in [*studies, *found.claims("smoke")] for series in study.series()):
        for trial in one.trials[:1]:
            kind = kind_of(trial)
            if kind not in measured:
                measured[kind] = shortened(trial).run(Workbench())
            assert one.quantity in measured[kind], f"{one.quantity} of {trial.title}"


def kind_of(trial):
    if isinstance(trial, SignalTrial):
        return SignalTrial
    noisy = "dropout" in dict(trial.network.arguments)
    return trial.network.family, noisy, trial.measures, trial.settings.probe_every, trial.treatment is None


def shortened(trial):
    if isinstance(trial, SignalTrial):
        return replace(trial, depth=3, width=20, samples=20)
    data = replace(trial.data, train=60, test=40)
    return replace(trial, data=data, settings=replace(trial.settings, epochs=1, batch_size=20))


class Shape:
    """As much of a set of images as a network's arguments follow from."""

    def __init__(self, channels, classes):
        size = {10: 32, 100: 32, 1000: 224}[classes] if channels == 3 else {1: 28}[channels]
        self.pixels = torch.empty(1, channels, size, size, dtype=torch.uint8, device="meta")
        self.num_classes = classes
