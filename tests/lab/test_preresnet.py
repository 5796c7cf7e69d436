"""Pre-activation residual networks: the paper's parameter and norm counts, and where the dropout stands."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from varshift_lab.networks import PreResNet, preresnet

COUNTS = [
    pytest.param({"depth": 110}, 1_703_258, 163, id="paper's 110"),
    pytest.param({"depth": 110, "num_classes": 100}, 1_726_388, 163, id="paper's 110, 100 classes"),
    pytest.param({"depth": 164, "block": "bottleneck"}, 1_703_258, 163, id="164 layers of bottlenecks"),
    pytest.param({"depth": 110, "block": "bottleneck"}, 1_146_842, 109, id="110 layers of bottlenecks"),
    pytest.param({"depth": 110, "block": "basic"}, 1_730_522, 109, id="110 layers of basic blocks"),
]


@pytest.mark.parametrize(("arguments", "parameters", "norms"), COUNTS)
@pytest.mark.parametrize("placement", ["none", "a", "b", "before_pooling", "last"])
def test_counts_equal_the_papers(arguments, parameters, norms, placement):
    with torch.device("meta"):
        network = preresnet(**arguments, dropout=0.5, placement=placement)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    assert sum(isinstance(module, nn.BatchNorm2d) for module in network.modules()) == norms


def called(network: nn.Module, inputs: torch.Tensor) -> list[tuple[str, nn.Module]]:
    """The leaf modules that do something, in the order of their calls."""
    order = []
    for name, module in network.named_modules():
        if not list(module.children()) and not isinstance(module, nn.Identity):
            module.register_forward_hook(lambda module, _, __, name=name: order.append((name, module)))
    with torch.no_grad():
        network(inputs)
    return order


@pytest.mark.parametrize(("block", "depth", "last"), [("basic", 14, "2"), ("bottleneck", 20, "3")])
@pytest.mark.parametrize("placement", ["a", "b"])
def test_dropout_stands_in_front_of_the_last_norm_or_convolution_of_each_branch(
    block, depth, last, placement
):
    network = preresnet(depth, block=block, dropout=0.3, placement=placement, width=4)
    order = called(network, torch.randn(2, 3, 8, 8))
    after = [order[index + 1][0] for index, (_, module) in enumerate(order) if isinstance(module, nn.Dropout)]
    follower = {"a": "norm", "b": "conv"}[placement] + last
    assert after == [f"stages.{stage}.{index}.{follower}" for stage in range(3) for index in range(2)]
    assert all(module.p == 0.3 for _, module in order if isinstance(module, nn.Dropout))


def test_one_dropout_stands_behind_the_last_norm():
    images = torch.randn(2, 3, 8, 8)
    for placement, shape in (("before_pooling", (2, 16, 2, 2)), ("last", (2, 16))):
        network = preresnet(14, dropout=0.3, placement=placement, width=4)
        order = called(network, images)
        assert [name for name, _ in order][-3:] == [
            "norm",
            placement.replace("last", "before_linear"),
            "linear",
        ]
        dropouts = [module for module in network.modules() if isinstance(module, nn.Dropout)]
        shapes = []
        dropouts[0].register_forward_hook(lambda _, inputs, __, seen=shapes: seen.append(inputs[0].shape))
        network(images)
        assert len(dropouts) == 1
        assert shapes == [shape]


def test_placements_share_their_weights_and_agree_without_noise():
    states, outputs = [], []
    images = torch.randn(3, 3, 8, 8)
    for placement in ("none", "a", "b", "before_pooling", "last"):
        torch.manual_seed(0)
        network = preresnet(20, dropout=0.5, placement=placement, width=4).eval()
        states.append(list(network.state_dict()))
        outputs.append(network(images))
    assert all(state == states[0] for state in states)
    assert all(torch.equal(output, outputs[0]) for output in outputs)


def test_no_dropout_is_built_at_rate_zero_or_without_a_place():
    for network in (preresnet(20, placement="a"), preresnet(20, dropout=0.5, placement="none")):
        assert not any(isinstance(module, nn.Dropout) for module in network.modules())


@pytest.mark.parametrize(("size", "channels"), [((8, 8), 1), ((32, 32), 3), ((1, 1), 2), ((9, 5), 3)])
def test_shapes(size, channels):
    network = preresnet(8, num_classes=7, in_channels=channels, width=4).eval()
    assert network(torch.randn(2, channels, *size)).shape == (2, 7)


def test_depth_chooses_bottlenecks_as_the_papers_code_does():
    with torch.device("meta"):
        small, large = preresnet(38), preresnet(44)
    assert not hasattr(small.stages[0][0], "conv3")
    assert hasattr(large.stages[0][0], "conv3")
    assert len(large.stages[0]) == 7


def test_convolutions_start_with_the_variance_of_their_fan_out():
    torch.manual_seed(0)
    network = preresnet(8, width=64)
    weight = network.stages[0][0].conv1.weight
    assert weight.var().item() == pytest.approx(2 / (9 * 64), rel=0.05)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 15}, r"depth=15 must be 6 n \+ 2 .* use 14 or 20"),
        ({"depth": 2}, r"depth=2 must be 6 n \+ 2 .* use 8 or 14"),
        ({"depth": 12, "block": "bottleneck"}, r"depth=12 must be 9 n \+ 2 .* use 11 or 20"),
        ({"depth": 20, "block": "wide"}, r"block='wide' is unknown: use one of basic, bottleneck"),
        ({"depth": 20, "placement": "c"}, r"placement='c' is unknown: use one of none, a, b"),
        ({"depth": 20, "dropout": 1.0}, r"dropout=1.0 must be a drop probability in \[0, 1\)"),
        ({"depth": 20, "dropout": -0.1}, r"dropout=-0.1 must be"),
        ({"depth": 20, "num_classes": 0}, r"num_classes=0 must be at least 1"),
        ({"depth": 20, "width": 0}, r"width=0 must be at least 1"),
    ],
)
def test_bad_arguments_name_argument_value_and_rule(arguments, message):
    with pytest.raises(ValueError, match=message):
        preresnet(**arguments)


def test_blocks_are_checked_when_the_network_is_built_directly():
    with pytest.raises(ValueError, match="blocks=0 must be at least 1"):
        PreResNet(0)
