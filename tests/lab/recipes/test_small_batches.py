"""Norms against the samples that they see: filter response norm, batch Kalman norm, renorm."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from varshift.nn import BatchKalmanNorm2d, FilterResponseNorm2d, FilterResponseNormTLU2d
from varshift.trials import Workbench
from varshift_lab.networks import preresnet
from varshift_lab.recipes import _batch_kalman_norm as kalman
from varshift_lab.recipes import _filter_response_norm as frn
from varshift_lab.recipes._small_batches import published_weight, renorm_clipping, small_batches
from varshift_lab.training import DataChoice

RECIPES = [frn.RECIPE, kalman.RECIPE]


def arguments(trial):
    found = dict(trial.network.arguments)
    return {**found, "norm_options": dict(found.get("norm_options") or ())}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
@pytest.mark.parametrize("scale", ["smoke", "laptop", "paper"])
def test_slices_divide_batches(recipe, scale):
    for trial in recipe.trials(scale):
        splits = arguments(trial)["norm_options"].get("splits", 1)
        assert trial.settings.batch_size % splits == 0


@pytest.mark.parametrize("scale", ["smoke", "laptop"])
def test_both_recipes_share_what_both_show(scale):
    shared = set(frn.RECIPE.trials(scale)) & set(kalman.RECIPE.trials(scale))
    sizes, seeds = small_batches(scale).sizes, small_batches(scale).seeds
    # batch norm and renorm of each size, and group norm
    assert len(shared) == (2 * len(sizes) + 1) * len(seeds)


def test_only_what_a_norm_sees_differs():
    few, many = (frn.plans("laptop")[size].trials("batch", size)[0] for size in (2, 32))
    assert few.settings == many.settings
    assert (few.seed, few.data, few.measures) == (many.seed, many.data, many.measures)
    assert arguments(few)["norm_options"]["splits"] == 16
    assert arguments(many)["norm_options"]["splits"] == 1


def test_paper_scale_of_filter_response_norm():
    plans = frn.plans("paper")
    assert [plan.settings.batch_size for plan in plans.values()] == [16, 32, 64, 128, 256]
    for plan in plans.values():
        steps = plan.settings.epochs * (1_281_167 // plan.settings.batch_size)
        assert steps == pytest.approx(300_000, rel=0.07)  # whole passes over the data
        assert plan.settings.learning_rate == pytest.approx(0.1 * plan.settings.batch_size / 256)
    trial = plans[2].trials("group")[0]
    with torch.device("meta"):
        network = trial.network._builder()(**arguments(trial))
    norms = [module for module in network.modules() if isinstance(module, nn.GroupNorm)]
    assert len(norms) == 49
    assert all(norm.num_groups == 32 for norm in norms)
    assert arguments(plans[4].trials("batch", 4)[0])["norm_options"]["splits"] == 8


def test_paper_scale_of_batch_kalman_norm():
    plans = kalman.plans("paper")
    depths = {size: arguments(plan.trials("kalman", size)[0]) for size, plan in plans.items()}
    assert depths[2]["depth"] == 32
    assert depths[2]["norm_options"]["splits"] == 64
    assert depths[128]["depth"] == 110
    settings = plans[2].settings
    epochs = [settings.rate(epoch * 390, 400 * 390) for epoch in (1, 81, 82, 122, 123, 299, 300)]
    assert epochs == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001, 0.0001])
    with torch.device("meta"):
        network = preresnet(**depths[2])
    assert sum(isinstance(module, BatchKalmanNorm2d) for module in network.modules()) == 31


def test_published_weights():
    assert published_weight(2) == 0.9
    assert published_weight(128) == 0.05


def test_limits_open_in_the_published_proportions():
    clipping = renorm_clipping(1000)
    assert (clipping.warmup, clipping.shift_end, clipping.scale_end) == (50, 250, 400)
    assert (clipping.scale, clipping.shift) == (3.0, 5.0)


def test_papers_points_are_read_as_errors():
    row = frn.samples("paper").rows[0]
    assert row.labels == ("FRN and TLU", "2")
    assert row.paper.value == pytest.approx(100 - 77.33)
    assert "read off" in row.paper.caveat
    found = {row.labels: row.paper for row in kalman.micro_batches("laptop").rows if row.paper}
    assert found["batch Kalman norm", "2"].value == 7.6
    assert set(found) == {
        ("batch Kalman norm", "2"),
        ("batch Kalman norm", "32"),
        ("group norm", "2"),
        ("batch norm", "2"),
        ("batch norm", "32"),
    }


def test_thresholds_at_zero_are_relus():
    torch.manual_seed(0)
    network = preresnet(8, width=4, norm="frn")
    frn.PlainReLU().prepare(network)
    thresholds = [module for module in network.modules() if isinstance(module, FilterResponseNormTLU2d)]
    assert thresholds
    assert not any(module.tau.requires_grad for module in thresholds)
    layer = thresholds[0]
    plain = FilterResponseNorm2d(layer.num_features)
    x = torch.randn(3, layer.num_features, 5, 5)
    torch.testing.assert_close(layer(x), plain(x).relu())


@pytest.mark.parametrize(
    ("norm", "size"), [("batch", 2), ("renorm", 2), ("renorm", 32), ("kalman", 2), ("frn", None)]
)
def test_trials_run(norm, size):
    made = small_batches("smoke")
    made = replace(
        made, data=DataChoice("digits", train=64, test=50), settings=replace(made.settings, epochs=1)
    )
    treatment = frn.PlainReLU() if norm == "frn" else None
    found = made.trials(norm, size, treatment=treatment)[0].run(Workbench())
    assert 0 <= found["test_error"] <= 100
    assert len(found["train_loss_history"]) == 1
