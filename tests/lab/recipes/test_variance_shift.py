"""The variance-shift recipe: its networks, what it measures, and the figures that it stands beside."""

import copy
import math

import pytest
import torch
from torch import nn

from varshift.theory import alignment, cosine_squared
from varshift.trials import Workbench
from varshift_lab.data import digit_images, subset
from varshift_lab.networks import densenet_bc, preresnet, resnext, wide_resnet
from varshift_lab.recipes import _variance_shift_figures as stated
from varshift_lab.recipes import recipe
from varshift_lab.recipes._variance_shift_measures import (
    augmented_shift,
    filters,
    norms_behind_noise,
    switched_images,
)
from varshift_lab.recipes._variance_shift_plan import plan, trials
from varshift_lab.training import TrainingSettings

SETTINGS = TrainingSettings(epochs=1, batch_size=32, learning_rate=0.1)
DIGITS = subset(digit_images(), 100)


def measured(measure, model):
    return measure(model, DIGITS, DIGITS, Workbench(), SETTINGS)


def seeded(build, *arguments, **options):
    torch.manual_seed(0)
    return build(*arguments, in_channels=1, **options)


# Trials


def test_the_paper_scale_trains_the_papers_networks():
    found = {subject.name: subject for subject in plan("paper").subjects}
    counts = {"PreResNet": 1_703_258, "ResNeXt": 34_426_698, "WRN": 36_479_194, "DenseNet": 769_162}
    for name, count in counts.items():
        with torch.device("meta"):
            network = found[name].network._builder()(**dict(found[name].network.arguments))
        assert sum(parameter.numel() for parameter in network.parameters()) == count
    rates = {
        name: [round(one.settings.rate(epoch, one.settings.epochs), 6) for epoch in (0, 120, 160, 290)]
        for name, one in found.items()
        if one.settings.epochs == 300
    }
    assert rates == {name: [0.1, 0.1, 0.01, 0.001] for name in ("ResNeXt", "DenseNet")}
    preresnet_rates = [found["PreResNet"].settings.rate(epoch, 164) for epoch in (80, 81, 121, 122)]
    assert preresnet_rates == pytest.approx([0.1, 0.01, 0.01, 0.001])
    wide = [found["WRN"].settings.rate(epoch, 200) for epoch in (59, 60, 120, 160)]
    assert wide == pytest.approx([0.1, 0.02, 0.004, 0.0008])


@pytest.mark.parametrize("scale", ["smoke", "laptop", "paper"])
def test_without_dropout_all_tables_share_their_trials(scale):
    made = plan(scale)
    subject, data = made.subjects[0], made.data[0][1]
    first = trials(scale, subject, data, 0.0, "a")
    assert (
        first
        == trials(scale, subject, data, 0.0, "b", "uniform")
        == trials(scale, subject, data, 0.0, "last")
    )
    assert [trial.seed for trial in first] == list(made.seeds)
    # and with it, tables and figures do
    needed = {one for study in ("table3",) for one in recipe("variance-shift").tables[study](scale).series()}
    drawn = {
        trial for one in recipe("variance-shift").figures["figure4"](scale).series() for trial in one.trials
    }
    whole = {trial for subject in made.whole for trial in trials(scale, subject, data, 0.5)}
    assert whole <= drawn
    assert whole <= {trial for one in needed for trial in one.trials}


# What the paper states


def test_what_was_read_off_the_plots_agrees_with_the_printed_table():
    for (placement, data, network), errors in stated.FIGURE4_ERROR.items():
        printed = stated.TABLE3[placement, "of training"][data, network]
        assert errors[0.5] == pytest.approx(printed, abs=0.021)


def test_the_first_norm_is_shifted_as_theory_says():
    for rate, values in stated.FIRST_NORM.items():
        assert min(values.values()) >= 1 / (1 - rate) - 0.02


@pytest.mark.parametrize(
    ("values", "data", "network", "value"),
    [
        (stated.TABLE1[1], "CIFAR-100", "WRN", 44.31261),
        (stated.TABLE3["a", "adjusted"], "CIFAR-10", "DenseNet", 6.82),
        (stated.TABLE4[0.1], "CIFAR-100", "DenseNet", 21.86),
        (stated.TABLE6[0.5], "CIFAR-10", "ResNeXt", 3.79),
        (stated.FIRST_NORM[0.3], "CIFAR-10", "WRN", 1.90),
    ],
)
def test_figures_stand_at_their_place(values, data, network, value):
    assert values[data, network] == value


def test_small_scales_say_whose_figures_stand_beside_theirs():
    for scale, text in (("smoke", "schedule, CIFAR-10; "), ("laptop", "schedule; ")):
        for row in recipe("variance-shift").tables["table3"](scale).rows:
            assert f"full-size network and {text}arXiv v1" in row.paper.caveat
    assert recipe("variance-shift").tables["table3"]("paper").rows[0].paper.caveat.startswith("arXiv v1")


# Measures


@pytest.mark.parametrize(
    ("build", "options", "placement", "expected"),
    [
        (
            preresnet,
            {"depth": 8, "width": 4},
            "a",
            {"stages.0.0.norm2", "stages.1.0.norm2", "stages.2.0.norm2"},
        ),
        (preresnet, {"depth": 8, "width": 4}, "b", {"stages.1.0.norm1", "stages.2.0.norm1", "norm"}),
        (preresnet, {"depth": 8, "width": 4}, "last", set()),
        (
            wide_resnet,
            {"depth": 10, "widen": 1, "width": 4},
            "b",
            {"stages.1.0.norm1", "stages.2.0.norm1", "norm"},
        ),
        (densenet_bc, {"depth": 10, "growth": 4}, "a", {f"stages.{stage}.0.norm2" for stage in range(3)}),
        (resnext, {"depth": 11, "width": 4}, "b", {f"stages.{stage}.0.norm3" for stage in range(3)}),
    ],
)
@pytest.mark.parametrize("noise", ["dropout", "uniform"])
def test_norms_behind_noise_are_those_of_the_paper(build, options, placement, expected, noise):
    network = seeded(build, dropout=0.5, placement=placement, noise=noise, **options)
    assert norms_behind_noise(network, DIGITS) == expected
    assert network.training


def test_the_shift_is_largest_right_behind_noise():
    found = measured(augmented_shift, seeded(preresnet, 8, width=8, dropout=0.5, placement="a"))
    assert len(found["shift"]) == 7
    assert found["shift_behind_noise"] == pytest.approx(sum(found["shift"][i] for i in (1, 3, 5)) / 3)
    assert found["shift_elsewhere"] == pytest.approx(sum(found["shift"][i] for i in (0, 2, 4, 6)) / 4)
    assert "shift_behind_noise" not in measured(augmented_shift, seeded(preresnet, 8, width=8))


def test_filters_are_measured_as_the_theory_says():
    network = seeded(preresnet, 8, width=4)
    found = measured(filters, network)
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    products = [sum(map(alignment, one.weight.flatten(1).tolist())) / len(one.weight) for one in layers]
    squares = [sum(map(cosine_squared, one.weight.flatten(1).tolist())) / len(one.weight) for one in layers]
    assert found["d_cos2_layers"] == pytest.approx(products)
    # stem, six convolutions of three blocks, two shortcuts: the first stage needs none
    assert len(products) == 9
    shortcuts = [place for place, one in enumerate(layers) if one.kernel_size == (1, 1)]
    assert len(shortcuts) == 2
    kept = [value for place, value in enumerate(squares) if place not in shortcuts]
    assert found["cos2_branches"] == pytest.approx(sum(kept) / 7)
    assert found["widths"] == [4, 8, 9, 36, 72, 144]
    at_36 = [value for value, one in zip(products, layers, strict=True) if one.weight[0].numel() == 36]
    assert found["d_cos2_by_width"][3] == pytest.approx(sum(at_36) / len(at_36))


def test_filters_of_zeros_are_left_out():
    network = seeded(preresnet, 8, width=4)
    with torch.no_grad():
        network.stages[0][0].conv1.weight.zero_()
    found = measured(filters, network)
    assert len(found["cos2_layers"]) == 8
    assert all(math.isfinite(value) for value in found["d_cos2_by_width"])


def test_switched_images_are_right_in_one_mode_and_wrong_in_the_other():
    network = seeded(densenet_bc, 10, growth=4, dropout=0.5, placement="a")
    with torch.no_grad():  # statistics of another network: eval mode errs on all it knew
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=3.0)
    before = copy.deepcopy(network.state_dict())
    found = measured(switched_images, network)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert network.training
    assert 0 <= found["switched"] <= 100
    pictures = [found[f"picture{place}"] for place in range(8)]
    assert all(len(picture) == 8 and len(picture[0]) == 8 for picture in pictures)
    assert len({str(picture) for picture in pictures}) == 8
    switched = round(found["switched"])  # of 100 images
    for place in range(min(8, switched)):
        label = int(found[f"class{place}"])
        scores = {mode: found[f"{mode}_scores{place}"] for mode in ("train", "eval")}
        assert max(range(10), key=scores["train"].__getitem__) == label
        assert max(range(10), key=scores["eval"].__getitem__) != label
