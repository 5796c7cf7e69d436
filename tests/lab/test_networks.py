"""The papers' networks: counts, places of the noise, kinds of noise and norm, and what a trainer needs."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
from torch import nn

from varshift.flow import capture
from varshift.functional import KalmanState, add_kalman_states, conv_moments
from varshift.nn import (
    BatchKalmanNorm2d,
    BatchRenorm2d,
    BinaryConv2d,
    FilterResponseNorm2d,
    FilterResponseNormTLU2d,
    GaussianDropout,
    ScaledStdConv2d,
    ThresholdedLinearUnit,
    UniformDropout,
)
from varshift_lab.networks import (
    binary_resnet,
    densenet,
    densenet_bc,
    ic_resnet,
    image_preresnet,
    linear_bn,
    preresnet,
    reactnet,
    resnet,
    resnext,
    vgg,
    wide_resnet,
)

SMALL = {
    "preresnet": (preresnet, {"depth": 8, "width": 4}),
    "preresnet bottleneck": (preresnet, {"depth": 11, "block": "bottleneck", "width": 4}),
    "preresnet padded": (preresnet, {"depth": 8, "width": 4, "shortcut": "pad"}),
    "image_preresnet": (image_preresnet, {"num_classes": 10, "width": 2}),
    "resnet": (resnet, {"depth": 8, "width": 4}),
    "resnet bottleneck": (resnet, {"depth": 11, "block": "bottleneck", "shortcut_norm": True, "width": 4}),
    "resnext": (resnext, {"depth": 11, "cardinality": 2, "base_width": 32, "width": 4}),
    "wide_resnet": (wide_resnet, {"depth": 10, "widen": 2, "width": 4}),
    "densenet": (densenet, {"depth": 10, "growth": 4, "width": 4}),
    "densenet_bc": (densenet_bc, {"depth": 16, "growth": 4}),
    "ic A": (ic_resnet, {"depth": 8, "variant": "A", "width": 4, "placement": "ic"}),
    "ic B": (ic_resnet, {"depth": 8, "variant": "B", "width": 4, "placement": "ic"}),
    "ic C": (ic_resnet, {"depth": 11, "variant": "C", "block": "bottleneck", "width": 4, "placement": "ic"}),
    "vgg": (vgg, {"width": 4, "placement": "paper"}),
    "linear_bn": (linear_bn, {"in_features": 3 * 32 * 32, "width": 8}),
    "binary_resnet": (binary_resnet, {"width": 4, "placement": "last"}),
    "reactnet": (reactnet, {"width": 4, "placement": "last", "num_classes": 10}),
    "reactnet with norms": (reactnet, {"width": 4, "placement": "b", "num_classes": 10, "norm": "batch"}),
}
_FAMILIES = ("preresnet", "image_preresnet", "resnet", "resnext", "wide_resnet", "ic")
RESIDUAL = [name for name in SMALL if name.split()[0] in _FAMILIES]


def small(name: str, **arguments) -> nn.Module:
    build, own = SMALL[name]
    return build(**{**own, **arguments})


def modules(network: nn.Module, kind) -> list[str]:
    return [name for name, module in network.named_modules() if isinstance(module, kind)]


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


# Counts


@pytest.mark.parametrize(
    ("build", "ten", "hundred", "norms"),
    [
        (preresnet, 1_703_258, 1_726_388, 163),
        (resnext, 34_426_698, 34_518_948, 31),
        (wide_resnet, 36_479_194, 36_536_884, 25),
        (densenet_bc, 769_162, 800_032, 99),
    ],
)
@pytest.mark.parametrize("placement", ["a", "b"])
def test_the_variance_shift_papers_networks_have_its_counts(build, ten, hundred, norms, placement):
    with torch.device("meta"):
        small_set, large_set = (build(num_classes=n, dropout=0.5, placement=placement) for n in (10, 100))
    assert (parameters(small_set), parameters(large_set)) == (ten, hundred)
    assert len(modules(small_set, nn.BatchNorm2d)) == norms


def test_a_densenet_of_single_convolutions_has_its_layers():
    with torch.device("meta"):
        network = densenet(40, dropout=0.2)
    assert len(modules(network, nn.BatchNorm2d)) == 39
    assert len(modules(network, nn.Conv2d)) == 39
    assert network.linear.in_features == 16 + 36 * 12
    # Behind every convolution but the stem's; the next norm reads it directly or behind the pooling.
    assert len(modules(network, nn.Dropout)) == 38
    assert isinstance(network.stages[0][-1].get_submodule("dropout1"), nn.Dropout)


IC_COUNTS = [
    (20, "basic", 272_282, 272_154, 18),
    (56, "basic", 855_578, 855_450, 54),
    (110, "basic", 1_730_522, 1_730_394, 108),
    (164, "bottleneck", 1_703_258, 1_702_746, 162),
]


@pytest.mark.parametrize(("depth", "block", "full", "bare", "units"), IC_COUNTS)
def test_the_independent_component_comparison_has_its_counts(depth, block, full, bare, units):
    with torch.device("meta"):
        for network in (resnet(depth, block=block), preresnet(depth, block=block)):
            assert parameters(network) == full
            assert len(modules(network, nn.BatchNorm2d)) == units + 1
        for variant, wanted, norms in (("A", bare, units), ("B", bare, units), ("C", full, units + 1)):
            network = ic_resnet(depth, block=block, variant=variant, final_norm=False)
            assert parameters(network) == wanted
            assert len(modules(network, nn.BatchNorm2d)) == norms
            assert len(modules(network, nn.Dropout)) == norms
            assert parameters(ic_resnet(depth, block=block, variant=variant)) == full


def test_binary_networks_have_the_papers_counts():
    def millions(network):
        return f"{parameters(network) / 1e6:.2f}"

    with torch.device("meta"):
        assert [millions(reactnet(norm=norm)) for norm in ("free", "batch", "none")] == [
            "29.33",
            "29.34",
            "29.32",
        ]
        assert millions(binary_resnet(num_classes=1000, stem="imagenet")) == "11.70"
        assert millions(binary_resnet()) == "11.18"


def test_reactnet_has_the_released_betas_and_shapes():
    network = reactnet()
    blocks = [block.module for block in network.stages[0]]
    first = [tuple(round(beta, 4) for beta in block.betas) for block in blocks]
    assert first[:2] == [(1, 0.9806), (0.9623, 0.9449)]
    assert first[8:] == [(0.9285, 0.9129), (0.898, 0.8839), (0.8704, 0.8575), (0.8452, 0.8333), (1, 0.9806)]
    assert [block.stride for block in blocks] == [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1]
    channels = [block.activation2.num_features for block in blocks]
    assert channels == [64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024]
    assert isinstance(network.stem, ScaledStdConv2d)


def test_binary_resnet_has_the_released_betas():
    betas = [round(block.module.beta, 4) for stage in binary_resnet(width=4).stages for block in stage]
    assert betas == [1, 1, 0.9806, 0.9623, *[0.9449, 1, 0.9806, 0.9623] * 3]


def test_vgg_has_the_papers_layers_and_rates():
    network = vgg()
    kinds = (nn.Conv2d, nn.Linear, nn.Dropout)
    layers = [module for module in network.modules() if isinstance(module, kinds)]
    found = [
        layer.p if isinstance(layer, nn.Dropout) else (layer.weight.shape[0], layer.bias is not None)
        for layer in layers
    ]
    assert found == [
        *[(64, True), 0.3, (64, True)],
        *[(128, True), 0.4, (128, True)],
        *[(256, True), 0.4, (256, True), 0.4, (256, True)],
        *[(512, True), 0.4, (512, True), 0.4, (512, True)] * 2,
        *[0.5, (512, True), 0.5, (10, True)],
    ]
    assert len(modules(vgg(16, width=4), nn.Linear)) == 3
    uniform = vgg(width=4, dropout=0.2)
    assert [uniform.get_submodule(name).p for name in modules(uniform, nn.Dropout)] == [0.2] * 10


@pytest.mark.parametrize(
    ("depth", "activation", "kinds"),
    [(1, None, "BL"), (2, None, "LBL"), (3, None, "LBLBL"), (3, "relu", "LBLBL")],
)
def test_linear_networks_have_the_papers_layers(depth, activation, kinds):
    network = linear_bn(depth, 3, in_features=5, width=4, activation=activation)
    names = {nn.Linear: "L", nn.BatchNorm1d: "B"}
    assert "".join(names[type(module)] for module in network.layers.children()) == kinds
    assert all(module.bias is None for module in network.modules() if isinstance(module, nn.Linear))
    x = torch.randn(6, 5)
    odd = torch.allclose(network.eval()(-x), -network(x), atol=1e-5)
    assert odd == (activation is None)


def test_linear_networks_may_have_biases():
    network = linear_bn(3, 3, in_features=5, width=4, norm="none", activation="relu", bias=True)
    layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
    assert all(layer.bias is not None for layer in layers)
    assert [type(layer) for layer in network.layers.children()] == [nn.Linear] * 3


def test_image_preresnet_has_the_known_counts():
    with torch.device("meta"):
        network = image_preresnet()
    assert parameters(network) == 25_549_352  # of 50 pre-activation layers with bare shortcut convolutions
    assert len(modules(network, nn.BatchNorm2d)) == 49
    assert network(torch.empty(2, 3, 64, 64, device="meta")).shape == (2, 1000)


def test_padded_shortcuts_have_no_weights_and_one_norm_less_in_the_first_block():
    network = preresnet(32, shortcut="pad")
    assert len(modules(network, nn.Conv2d)) == 31
    assert len(modules(network, nn.BatchNorm2d)) == 31
    block = network.stages[1][0]
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 16, 6, 6)
    y = block(x)[0]
    torch.testing.assert_close(y[:, 8:24], nn.functional.avg_pool2d(x, 2))
    assert not y[:, :8].any()
    assert not y[:, 24:].any()


def test_a_padded_shortcut_pads_the_state_of_kalman_norms():
    network = preresnet(8, width=4, norm="kalman", shortcut="pad")
    block = network.stages[1][0]
    x, state = torch.randn(4, 4, 6, 6), KalmanState(torch.rand(1, 4), torch.rand(1, 4))
    nn.init.zeros_(block.conv2.weight)
    _, own = block.norm1(x, state, None)
    after = block(x, state)[1]
    torch.testing.assert_close(after.mean[:, 2:6], own.mean)
    assert not after.var[:, :2].any()


# Places of the noise


def sites(network: nn.Module) -> list[tuple[str, str | None, str]]:
    flow = capture(network, torch.randn(2, 3, 32, 32)).train
    assert flow is not None
    return [(noise.name, noise.nearest, noise.path) for noise in flow.noises]


@pytest.mark.parametrize(
    ("name", "placement", "first", "last"),
    [
        ("preresnet bottleneck", "a", ("stages.0.0.norm3", "direct"), ("stages.2.0.norm3", "direct")),
        ("preresnet bottleneck", "b", ("stages.1.0.norm1", "join"), ("norm", "join")),
        ("resnext", "a", ("stages.0.0.norm3", "direct"), ("stages.2.0.norm3", "direct")),
        ("resnext", "b", ("stages.0.0.norm3", "weight"), ("stages.2.0.norm3", "weight")),
        ("wide_resnet", "a", ("stages.0.0.norm2", "direct"), ("stages.2.0.norm2", "direct")),
        ("wide_resnet", "b", ("stages.1.0.norm1", "join"), ("norm", "join")),
        ("densenet_bc", "a", ("stages.0.0.norm2", "direct"), ("stages.2.1.norm2", "direct")),
        ("densenet_bc", "b", ("stages.0.1.norm1", "weight"), ("norm", "weight")),
        ("resnet", "a", ("stages.0.0.norm2", "direct"), ("stages.2.0.norm2", "direct")),
        ("resnet", "b", ("stages.0.0.norm2", "weight"), ("stages.2.0.norm2", "weight")),
    ],
)
def test_the_norm_that_sees_the_shift_first_is_that_of_the_papers_table(name, placement, first, last):
    found = sites(small(name, dropout=0.3, placement=placement))
    assert (found[0][1:], found[-1][1:]) == (first, last)
    assert len(found) == (6 if name == "densenet_bc" else 3)


@pytest.mark.parametrize(
    ("placement", "name", "nearest", "path"),
    [
        ("A", "stages.0.0.before_first_norm", "stages.0.0.norm1", "direct"),
        ("B", "stages.0.0.behind_first_norm", "stages.0.0.norm2", "weight"),
        ("C", "stages.0.0.before_weight", "stages.0.0.norm2", "weight"),
        ("D", "stages.0.0.before_norm", "stages.0.0.norm2", "direct"),
        ("E", "stages.0.0.behind_norm", "stages.1.0.norm1", "join"),
        ("F", "stages.0.0.before_conv", "stages.1.0.norm1", "join"),
        ("G", "stages.0.0.behind_branch", "stages.1.0.norm1", "join"),
        ("T", "stages.0.0.behind_sum", "stages.1.0.norm1", "direct"),
        ("P", "stages.0.0.drop_path", "stages.1.0.norm1", "join"),
        ("before_pooling", "before_pooling", None, "none"),
        ("last", "before_linear", None, "none"),
    ],
)
def test_every_letter_stands_where_the_position_map_has_it(placement, name, nearest, path):
    assert sites(small("preresnet", dropout=0.3, placement=placement))[0] == (name, nearest, path)


def test_drop_path_gates_the_branch_and_trunk_noise_everything():
    flows = [
        capture(small("preresnet", dropout=0.3, placement=p), torch.randn(2, 3, 8, 8)).train for p in "PT"
    ]
    gate, trunk = (flow.noises[0] for flow in flows if flow is not None)
    assert (gate.kind, gate.drops, trunk.kind) == ("drop_path", "branch", "dropout")


@pytest.mark.parametrize("name", ["resnet", "resnet bottleneck", "resnext", "reactnet with norms"])
@pytest.mark.parametrize("placement", ["E", "F"])
def test_blocks_that_end_with_a_norm_have_no_guideline_slot(name, placement):
    with pytest.raises(ValueError, match=f"placement='{placement}'"):
        small(name, placement=placement)


@pytest.mark.parametrize("pair", ["BC", "EF"])
@pytest.mark.parametrize("name", ["preresnet", "wide_resnet", "densenet_bc", "preresnet bottleneck"])
def test_noise_on_either_side_of_a_relu_is_the_same_to_the_bit(name, pair):
    outputs = []
    for placement in pair:
        torch.manual_seed(0)
        network = small(name, dropout=0.4, placement=placement)
        torch.manual_seed(1)
        outputs.append(network(torch.randn(4, 3, 8, 8)))
    assert torch.equal(*outputs)


@pytest.mark.parametrize("name", [*RESIDUAL, "densenet_bc", "linear_bn"])
def test_placements_share_their_weights_and_agree_in_evaluation(name):
    choices = inspect.signature(SMALL[name][0]).parameters
    assert {"dropout", "placement", "noise", "norm", "norm_options"} <= set(choices)
    images = torch.randn(3, 3, 32, 32)
    states, outputs = [], []
    for placement in ("none", "a", "b", "A", "B", "C", "D", "last"):
        torch.manual_seed(0)
        network = small(name, dropout=0.5, placement=placement).eval()
        states.append(list(network.state_dict()))
        outputs.append(network(images))
    assert all(state == states[0] for state in states)
    assert all(torch.equal(output, outputs[0]) for output in outputs)


@pytest.mark.parametrize("variant", ["A", "B"])
def test_independent_components_drop_in_front_of_every_weight_of_a_branch(variant):
    network = small(f"ic {variant}", dropout=0.05)
    order = []
    for name, module in network.named_modules():
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d, nn.Dropout)) and not name.endswith("shortcut"):
            module.register_forward_hook(lambda module, _, __: order.append(type(module).__name__))
    network(torch.randn(2, 3, 8, 8))
    text = " ".join(order)
    assert text.count("BatchNorm2d Dropout Conv2d") == 6
    assert text.count("Dropout") == 6
    control = small(f"ic {variant}", placement="none")
    assert list(control.state_dict()) == list(network.state_dict())


def test_independent_component_blocks_keep_the_identity():
    x = torch.randn(4, 4, 6, 6)
    for variant in "AB":
        block = small(f"ic {variant}").stages[0][0]
        if variant == "A":
            nn.init.zeros_(block.conv2.weight)
            assert torch.equal(block(x)[0], x)
        else:
            assert bool((block(x)[0] >= x).all())


# Kinds of noise


@pytest.mark.parametrize(
    ("noise", "kind", "site", "rate"),
    [
        ("dropout", nn.Dropout, "dropout", 0.2),
        ("channel", nn.Dropout2d, "channel_dropout", 0.2),
        ("uniform", UniformDropout, "uniform", 0.2),
        ("gaussian", GaussianDropout, "gaussian", 0.5),
    ],
)
def test_every_noise_is_one_that_the_check_sees(noise, kind, site, rate):
    network = small("preresnet", dropout=0.2, placement="b", noise=noise)
    assert len(modules(network, kind)) == 3
    flow = capture(network, torch.randn(2, 3, 16, 16)).train
    assert flow is not None
    assert flow.noises[0].kind == site
    assert flow.noises[0].rate == pytest.approx(rate, abs=1e-6)


def test_channel_noise_on_vectors_drops_elements():
    network = small("preresnet", dropout=0.2, placement="last", noise="channel")
    assert type(network.before_linear) is nn.Dropout
    network(torch.randn(2, 3, 8, 8))


def test_noise_and_norm_may_be_functions():
    network = small(
        "resnext",
        dropout=0.3,
        noise=lambda beta: UniformDropout(beta, per_channel=True),
        norm=lambda channels: nn.InstanceNorm2d(channels, affine=True),
    )
    assert len(modules(network, UniformDropout)) == 3
    assert len(modules(network, nn.InstanceNorm2d)) == 13
    network(torch.randn(2, 3, 8, 8)).sum().backward()


# Kinds of norm


def test_frn_takes_the_place_of_norm_and_relu():
    pre, post = small("preresnet", norm="frn"), small("resnet", norm="frn")
    assert len(modules(pre, FilterResponseNormTLU2d)) == 7
    assert not modules(pre, nn.BatchNorm2d)
    # A norm at the end of a branch has no ReLU behind it; the one behind the sum stays.
    ends = [name for name in modules(post, FilterResponseNorm2d) if name.endswith("norm2")]
    assert len(ends) == 3
    assert all(post.get_submodule(name).tau is None for name in ends)
    images = torch.randn(4, 3, 8, 8)
    pre.train()
    assert torch.equal(pre(images), pre.eval()(images))


def test_noise_between_frn_and_its_threshold_splits_them():
    torch.manual_seed(0)
    network = small("preresnet", norm="frn", dropout=0.3, placement="E").eval()
    torch.manual_seed(0)
    whole = small("preresnet", norm="frn", dropout=0.3, placement="F").eval()
    assert len(modules(network, ThresholdedLinearUnit)) == 3
    assert parameters(network) == parameters(whole)
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(network(images), whole(images))


@pytest.mark.parametrize("name", [name for name in SMALL if "react" not in name and "binary" not in name])
@pytest.mark.parametrize("norm", ["frn", "kalman", "group", "renorm", "none"])
def test_every_norm_trains_in_every_network(name, norm):
    torch.manual_seed(0)
    network = small(name, norm=norm, dropout=0.1)
    loss = network(torch.randn(4, 3, 32, 32)).square().mean()
    loss.backward()
    assert torch.isfinite(loss)
    missing = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert missing == []
    assert torch.isfinite(network.eval()(torch.randn(1, 3, 32, 32))).all()


@pytest.mark.parametrize("norm", ["batch", "frn", "group", "renorm", "none"])
@pytest.mark.parametrize("build", [reactnet, binary_resnet])
def test_binary_networks_take_other_norms(build, norm):
    network = build(num_classes=5, width=4, norm=norm, dropout=0.1, placement="T")
    network(torch.randn(4, 3, 32, 32)).square().mean().backward()
    assert modules(network, BinaryConv2d)
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_norms_are_of_the_class_asked_for():
    assert len(modules(small("preresnet", norm="kalman"), BatchKalmanNorm2d)) == 7
    assert len(modules(small("preresnet", norm="renorm"), BatchRenorm2d)) == 7
    assert not modules(small("preresnet", norm="none"), nn.BatchNorm2d)
    grouped = small("preresnet", norm="group", norm_options={"num_groups": 8})
    groups = [grouped.get_submodule(name).num_groups for name in modules(grouped, nn.GroupNorm)]
    assert groups == [4, 4, 4, 8, 8, 8, 8]  # what 8 has in common with 4, 4, 4, 8, 8, 16, 16 channels


@pytest.mark.parametrize("name", [*RESIDUAL, "densenet_bc"])
def test_kalman_norms_without_weight_on_the_prediction_are_batch_norms(name):
    images = torch.randn(4, 3, 16, 16)
    outputs = []
    for arguments in ({"norm": "batch"}, {"norm": "kalman", "norm_options": {"prediction_weight": 0.0}}):
        torch.manual_seed(0)
        outputs.append(small(name, dropout=0.0, **arguments)(images))
    torch.testing.assert_close(*outputs, rtol=1e-3, atol=1e-3)


def received(network: nn.Module) -> dict:
    """The state that every Kalman norm was given, and the one it gave."""
    states = {}
    for name in modules(network, BatchKalmanNorm2d):
        network.get_submodule(name).register_forward_hook(
            lambda _, inputs, outputs, name=name: states.__setitem__(name, (inputs[1], outputs[1]))
        )
    return states


def test_kalman_states_are_threaded_through_joins():
    network = small("preresnet", norm="kalman")
    states = received(network)
    network(torch.randn(4, 3, 8, 8))
    assert [name for name, (before, _) in states.items() if before is None] == ["stages.0.0.norm1"]
    first, second = states["stages.0.0.norm1"][1], states["stages.0.0.norm2"]
    block = network.stages[0][0]
    inner = conv_moments(first, block.conv1.weight)
    torch.testing.assert_close(second[0].mean, inner.mean)
    torch.testing.assert_close(second[0].var, inner.var)
    # Behind the join: the fused moments of the trunk and the predicted ones of the branch.
    outer = add_kalman_states(first, conv_moments(second[1], block.conv2.weight))
    torch.testing.assert_close(states["stages.1.0.norm1"][0].mean, outer.mean)
    torch.testing.assert_close(states["stages.1.0.norm1"][0].var, outer.var)
    # A convolution on the shortcut reads the trunk as it is, without a ReLU.
    trunk, branch = states["stages.1.0.norm1"][1], states["stages.1.0.norm2"][1]
    strided = network.stages[1][0]
    outer = add_kalman_states(
        conv_moments(trunk, strided.shortcut.weight, negative_slope=1.0),
        conv_moments(branch, strided.conv2.weight),
    )
    torch.testing.assert_close(states["stages.2.0.norm1"][0].var, outer.var)


@pytest.mark.parametrize("name", [*RESIDUAL, "densenet_bc"])
def test_every_kalman_norm_but_the_first_has_a_prediction_of_its_own_size(name):
    network = small(name, norm="kalman", dropout=0.0)
    states = received(network)
    network(torch.randn(4, 3, 16, 16))
    heads = [name for name, (before, _) in states.items() if before is None]
    first = modules(network, BatchKalmanNorm2d)[:1]
    # No norm of variant A sees the trunk as it is, so that every block starts afresh.
    blocks = ["stages.1.0.norm1", "stages.2.0.norm1", "norm"] if name == "ic A" else []
    assert heads == [*first, *blocks]
    for before, after in states.values():
        assert before is None or before.mean.shape == after.mean.shape


# What a trainer and the check need


def test_norms_are_registered_in_the_order_in_which_they_run():
    for name in SMALL:
        network = small(name, norm="none" if name in ("binary_resnet", "reactnet") else "batch")
        norms = modules(network, (nn.BatchNorm1d, nn.BatchNorm2d))
        flow = capture(network, torch.randn(2, 3, 32, 32)).train
        assert flow is not None
        if name in ("resnet bottleneck", "resnext"):  # branch first, as the figures count them
            assert norms[1:5] == [f"stages.0.0.{n}" for n in ("norm1", "norm2", "norm3", "shortcut_norm")]
            assert {norm.name for norm in flow.norms} == set(norms)
        else:
            assert [norm.name for norm in flow.norms] == norms


@pytest.mark.parametrize("name", SMALL)
def test_each_network_trains_exports_and_copies(name):
    torch.manual_seed(0)
    network = small(name, dropout=0.2)
    images, labels = torch.randn(4, 3, 32, 32), torch.randint(0, 10, (4,))
    before = copy.deepcopy(network.state_dict())
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    nn.functional.cross_entropy(network(images), labels).backward()
    optimizer.step()
    assert any(not torch.equal(value, before[key]) for key, value in network.state_dict().items())
    network.eval()
    copied = copy.deepcopy(network)
    expected = network(images)
    assert torch.equal(copied(images), expected)
    loaded = small(name).eval()
    loaded.load_state_dict(network.state_dict())
    assert torch.equal(loaded(images), expected)
    if "react" not in name and "binary" not in name:
        exported = torch.export.export(copied, (images,), strict=False).module()
        torch.testing.assert_close(exported(images), expected)


def test_a_binary_block_exports():
    block = binary_resnet(width=4).eval().stages[0][0]
    x = torch.randn(2, 4, 8, 8)
    exported = torch.export.export(block, (x,), strict=False).module()
    torch.testing.assert_close(exported(x)[0], block(x)[0])


def test_a_kalman_network_exports_in_training():
    exported = torch.export.export(
        small("preresnet", norm="kalman"), (torch.randn(4, 3, 8, 8),), strict=False
    )
    assert exported.module()(torch.randn(4, 3, 8, 8)).shape == (4, 10)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("resnet", {"depth": 9}, r"depth=9 must be 6 n \+ 2 .* use 8 or 14"),
        ("preresnet", {"shortcut": "none"}, r"shortcut='none' is unknown: use one of conv, pad"),
        ("image_preresnet", {"depth": 34}, r"depth=34 must be one of 50, 101, 152"),
        ("resnext", {"depth": 30}, r"depth=30 must be 9 n \+ 2 .* use 29 or 38"),
        ("wide_resnet", {"depth": 8}, r"depth=8 must be 6 n \+ 4 .* use 10 or 16"),
        ("densenet_bc", {"depth": 100.5}, r"depth=100.5 must be a whole number"),
        ("ic A", {"variant": "D"}, r"variant='D' is unknown: use one of A, B, C"),
        ("vgg", {"depth": 11}, r"depth=11 must be 15"),
        ("vgg", {"image_size": 16}, r"image_size=16 must be at least 32"),
        ("vgg", {"placement": "last"}, r"dropout=None means the paper's rates"),
        ("vgg", {"placement": "a", "dropout": 0.1}, r"placement='a' is unknown: use one of paper"),
        ("linear_bn", {"depth": 0}, r"depth=0 must be 1 n \+ 0"),
        ("linear_bn", {"placement": "G"}, r"placement='G' is unknown"),
        ("linear_bn", {"activation": "gelu"}, r"activation='gelu' is unknown"),
        ("binary_resnet", {"depth": 34}, r"depth=34 must be 18"),
        ("binary_resnet", {"placement": "a"}, r"placement='a' is unknown: use one of none, before_pooling"),
        ("binary_resnet", {"norm": "kalman"}, r"norm='kalman' is unknown: use one of free"),
        ("binary_resnet", {"stem": "large"}, r"stem='large' is unknown"),
        ("binary_resnet", {"norm_options": {"eps": 1}}, r"norm_options=.* has no norm"),
        ("resnext", {"placement": "ic"}, r"placement='ic' is unknown"),
        ("resnext", {"noise": "salt"}, r"noise='salt' is unknown: use one of dropout, channel"),
        ("resnext", {"norm": "layer"}, r"norm='layer' is unknown: use one of batch, frn"),
        ("resnext", {"norm": "none", "norm_options": {"eps": 1}}, r"norm_options=.* has no norm"),
        ("resnext", {"dropout": 1.5, "noise": "uniform"}, r"dropout=1.5 must be a half-width in \[0, 1\]"),
        ("resnext", {"dropout": 1.0, "noise": "gaussian"}, r"dropout=1.0 must be a drop probability"),
        ("resnext", {"placement": "P", "noise": "uniform"}, r"noise='uniform' has no placement 'P'"),
        ("resnext", {"cardinality": 0}, r"cardinality=0 must be at least 1"),
        ("wide_resnet", {"widen": 1.5}, r"widen=1.5 must be at least 1, and whole"),
        ("densenet_bc", {"compression": 0}, r"compression=0 must be in \(0, 1\]"),
        ("reactnet", {"num_classes": 0}, r"num_classes=0 must be at least 1"),
    ],
)
def test_bad_arguments_name_argument_value_and_rule(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        small(name, **arguments)


@pytest.mark.parametrize("variant", ["A", "B", "C"])
def test_independent_components_shift_variances_as_much_as_was_measured_of_them(variant):
    """Ratio of variances with noise on and off at every norm but the first, each on batch statistics."""
    torch.manual_seed(0)
    network = ic_resnet(20, variant=variant, dropout=0.05)
    images = nn.functional.interpolate(torch.randn(64, 3, 8, 8), scale_factor=4.0, mode="bilinear")
    found: dict[str, list[torch.Tensor]] = {}
    for name in modules(network, nn.BatchNorm2d):
        network.get_submodule(name).register_forward_pre_hook(
            lambda _, inputs, name=name: found.setdefault(name, []).append(inputs[0].var((0, 2, 3)).mean())
        )
    with torch.no_grad():
        network(images)
        for name in modules(network, nn.Dropout):
            network.get_submodule(name).eval()
        network(images)
    ratios = torch.stack([noisy / clean for noisy, clean in found.values()])[1:]
    assert 1.03 < ratios.log().mean().exp().item() < 1.12
