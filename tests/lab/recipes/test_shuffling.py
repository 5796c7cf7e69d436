"""The shuffling recipe: its optima and toy sets against what is known of them, and its trials."""

import itertools
import json
import math
from dataclasses import replace

import pytest
import torch

from varshift.trials import Workbench, decode_trial, encode
from varshift_lab.recipes._shuffling import RECIPE
from varshift_lab.recipes._shuffling_cases import image_cases, residual_trial
from varshift_lab.recipes._shuffling_data import BlockToy, GaussianSigns, ImageVectors, PlaneToy, Vectors
from varshift_lab.recipes._shuffling_optima import (
    distorted,
    full_batch_optimum,
    normalised,
    reshuffle_optimum,
    separation,
    single_shuffle_optimum,
)
from varshift_lab.recipes._shuffling_trials import (
    RegressionTrial,
    ScalarOptimaTrial,
    SeparabilityTrial,
    ShufflingTrial,
)
from varshift_lab.studies import SCALES
from varshift_lab.training import TrainingTrial

X = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 8], [3, -1, 4, 1, -5, 9, -2, 6]], dtype=torch.float64).T
Y = X[:, :1] + 2 * X[:, 1:]
BENCH = Workbench()
TOY = ShufflingTrial(0, GaussianSigns(test=100), epochs=60, points=3, shift=False)


def rounded(matrix):
    return [round(float(value), 4) for value in matrix.flatten()]


@pytest.mark.parametrize(
    ("size", "reshuffled", "stored"),
    [(2, [2.1115, 5.6885], [4.375, 7.375]), (4, [2.4413, 7.6879], [2.2771, 7.4774])],
)
def test_optima_of_eight_points(size, reshuffled, stored):
    assert rounded(full_batch_optimum(X, Y)) == [2.4969, 8.5110]
    assert rounded(reshuffle_optimum(X, Y, size, torch.Generator())) == reshuffled
    assert rounded(single_shuffle_optimum(X, Y, torch.arange(8), size)) == stored


def test_drawn_batches_give_the_optimum_of_all_batches(monkeypatch):
    exact = reshuffle_optimum(X, Y, 4, torch.Generator())
    monkeypatch.setattr("varshift_lab.recipes._shuffling_optima._ALL_SUBSETS", 1)
    drawn = reshuffle_optimum(X, Y, 4, torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn, exact, rtol=0.02, atol=0)


def test_a_feature_that_is_the_same_in_a_batch_becomes_zero():
    assert normalised(torch.ones(2, 3)).tolist() == [[0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize(
    ("points", "kind", "direction"),
    [
        ([[1, 1], [1, -1]], "separable", [1, 0]),
        ([[2, 0], [0, 1], [0, -1]], "partly separable", [1, 0]),
        ([[1, 0], [-1, 0.5], [0, -1]], "inseparable", [0, 0]),
        # A point near the border counts as much as its margin, not as its length.
        ([[100, 1], [-99, 1]], "separable", [0, 1]),
    ],
)
def test_separation(points, kind, direction):
    found = separation(torch.tensor(points, dtype=torch.float64))
    assert found.kind == kind
    torch.testing.assert_close(
        found.direction, torch.tensor(direction, dtype=torch.float64), atol=0.03, rtol=0
    )


def test_separation_agrees_with_gradient_descent():
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(10, 4, dtype=torch.float64, generator=draws)
    x[:, 0] = x[:, 0].abs() + 0.5
    w = torch.zeros(4, dtype=torch.float64)
    for _ in range(20_000):
        w += 0.5 * torch.sigmoid(-(x @ w)) @ x / len(x)
    found = separation(x)
    assert found.kind == "separable"
    # The direction is approached as the inverse of the logarithm of time.
    assert float(found.direction @ w / w.norm()) > 0.95


def test_the_six_points_are_separable_as_they_are_and_mostly_in_batches():
    x, sign = BlockToy().points()
    assert x.tolist()[0] == [1, 0, 0.01, -0.01, 0.01, -0.01]
    assert separation(x * sign[:, None]).kind == separation(normalised(x) * sign[:, None]).kind == "separable"
    found = SeparabilityTrial(0, BlockToy()).run(BENCH)
    counts = [round(7.2 * found[name]) for name in ("partly_separable", "separable", "inseparable")]
    assert counts == [432, 240, 48]
    assert 0 < found["against"] <= 100 - found["inseparable"]


def test_the_plane_in_stored_order_leads_astray():
    x, sign = PlaneToy(10).points()
    assert x.shape == (26, 2)
    found = separation(distorted(x, torch.arange(26), 2) * sign[:, None])
    assert found.kind == "partly separable"
    torch.testing.assert_close(found.direction, torch.tensor([-1.0, 1.0], dtype=torch.float64) / math.sqrt(2))
    assert separation(normalised(x) * sign[:, None]).kind == "separable"
    assert int((normalised(x) * sign[:, None] @ found.direction < 0).sum()) == 2


def test_the_scalar_law():
    found = ScalarOptimaTrial(0, samples=8192, batch_size=2, partitions=20).run(BENCH)
    assert found["bias"] == pytest.approx(-43.6, abs=1)


def test_regression_reaches_the_optimum_of_its_own_risk():
    single, reshuffle = (
        RegressionTrial(1, samples=40, features=3, order=order, epochs=400).run(BENCH)
        for order in ("single", "reshuffle")
    )
    assert min(single, key=lambda name: single[name]) == "to_single"
    assert min(reshuffle, key=lambda name: reshuffle[name]) == "to_reshuffle"


def test_single_shuffle_and_reshuffling_in_the_toy():
    single, reshuffle, again = (
        replace(TOY, order=order, epochs=200).run(BENCH) for order in ("single", "reshuffle", "batches")
    )
    assert single["eval_loss"] > 2 * single["own_loss"]
    assert reshuffle["eval_loss"] < reshuffle["own_loss"]
    assert reshuffle["full_batch_loss"] < single["full_batch_loss"]
    assert single["memorisation"] > 0.3 > abs(reshuffle["memorisation"])
    assert again["own_loss"] == pytest.approx(single["own_loss"], rel=0.1)
    assert single["full_batch_lowest"] == min(single["full_batch_loss_history"])
    cured = replace(TOY, order="single", epochs=200, cure=60).run(BENCH)
    assert cured["full_batch_loss"] < single["full_batch_loss"] / 2


def test_batches_of_every_order():
    n = 48

    def epochs(order, cure=0, count=3):
        trial = replace(TOY, order=order, epochs=2, cure=cure)
        batches = [trial._batches(epoch, n, "cpu") for epoch in range(count)]
        return [{frozenset(batch.tolist()) for batch in epoch} for epoch in batches], batches

    single, lists = epochs("single")
    assert single[0] == single[1]
    assert all(map(torch.equal, lists[0], lists[1]))
    fixed, lists = epochs("batches")
    assert fixed[0] == fixed[1] == single[0]
    assert not all(map(torch.equal, lists[0], lists[1]))
    fresh, lists = epochs("reshuffle")
    assert not fresh[0] & fresh[1]
    assert torch.cat(lists[0]).sort().values.tolist() == list(range(n))
    drawn = torch.cat(epochs("replacement")[1][0])
    assert len(drawn) == n > len(drawn.unique())
    cured, _ = epochs("single", cure=1)
    assert cured[0] == cured[1] != cured[2]
    assert len(replace(TOY, batch_size=7)._batches(0, n, "cpu")) == 6


def test_an_interrupted_run_goes_on_to_the_same_figures(tmp_path):
    whole = TOY.run(BENCH)

    class StopError(Exception):
        pass

    def interrupt(event):
        if event["epoch"] == 40:
            raise StopError

    with pytest.raises(StopError):
        TOY.run(Workbench(folder=tmp_path, record=interrupt))
    seen = []
    resumed = TOY.run(Workbench(folder=tmp_path, record=lambda event: seen.append(event["epoch"])))
    assert seen == [40, 60]
    assert resumed == whole
    assert TOY.run(Workbench(folder=tmp_path)) == whole


def test_images_become_components():
    data = ImageVectors("digits", 200, 50, 16).load(0, BENCH)
    assert data.x.shape == (200, 16)
    assert data.test_x.shape == (50, 16)
    assert data.classes == 10
    assert float(data.x.square().mean()) == pytest.approx(1, abs=1e-5)
    products = data.x.T @ data.x
    assert float((products - products.diag().diag()).abs().max()) < 1e-3 * float(products.diag().max())
    pixels = ImageVectors("digits", 200, 50, None).load(0, BENCH)
    assert -1 == float(pixels.x.min()) < float(pixels.x.max()) <= 1


@pytest.mark.parametrize("scale", SCALES)
def test_trials_are_plain_data(scale):
    trials = RECIPE.trials(scale)
    assert len({trial.key for trial in trials}) == len(trials)
    for trial in trials[:: len(trials) // 20]:
        assert decode_trial(json.loads(json.dumps(encode(trial)))) == trial


@pytest.mark.parametrize("scale", SCALES)
def test_every_quantity_is_measured(scale):
    residual = residual_trial("smoke", "single")
    known = {
        ShufflingTrial: {*replace(TOY, epochs=2, points=1).run(BENCH)},
        RegressionTrial: {*RegressionTrial(0, samples=8, features=2, epochs=1).run(BENCH)},
        ScalarOptimaTrial: {*ScalarOptimaTrial(0, samples=64, partitions=2).run(BENCH)},
        SeparabilityTrial: {*SeparabilityTrial(0, PlaneToy(2), 2, 1).run(BENCH)},
        TrainingTrial: {*replace(residual, settings=replace(residual.settings, epochs=1)).run(BENCH)},
    }
    studies = [make(scale) for make in (*RECIPE.tables.values(), *RECIPE.figures.values())]
    studies += RECIPE.claims(scale)
    for series in itertools.chain.from_iterable(study.series() for study in studies):
        for trial in series.trials:
            assert series.quantity in known[type(trial)]


def test_the_papers_networks_can_be_built():
    for trial, _ in image_cases("paper").values():
        empty = torch.empty(0, 3072)
        data = Vectors(empty, empty, empty, empty, 10)
        with torch.device("meta"):
            assert trial._network(data)(torch.empty(4, 3072)).shape == (4, 10)
    assert trial.batch_size == 128
    assert trial.epochs == 100
