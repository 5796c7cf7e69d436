"""Which weights are scale invariant: norms in every place, norms behind concatenations, real networks."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from varshift.optim import ScaleInvariantWeight, WeightRescaling, find_followed_by_norm, find_scale_invariant


class Wired(nn.Module):
    """A module whose forward is a function of its parts."""

    def __init__(self, run, **parts):
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.run(self, x)


def conv(bias=True, **rest):
    return nn.Conv2d(4, 4, 3, padding=1, bias=bias, **rest)


STRUCTURES = {
    "conv-norm": (lambda m, x: m.b(m.a(x)), {"b": nn.BatchNorm2d(4)}, {"filter", "layer"}),
    "conv-relu-norm": (lambda m, x: m.b(m.a(x).relu()), {"b": nn.BatchNorm2d(4)}, {"filter", "layer"}),
    "conv-pool-norm": (
        lambda m, x: m.b(F.max_pool2d(m.a(x), 2)),
        {"b": nn.BatchNorm2d(4)},
        {"filter", "layer"},
    ),
    "conv-dropout-norm": (
        lambda m, x: m.b(F.dropout(m.a(x), 0.3)),
        {"b": nn.BatchNorm2d(4)},
        {"filter", "layer"},
    ),
    "conv-silu-norm": (lambda m, x: m.b(F.silu(m.a(x))), {"b": nn.BatchNorm2d(4)}, set()),
    "conv-tanh-norm": (lambda m, x: m.b(torch.tanh(m.a(x))), {"b": nn.BatchNorm2d(4)}, set()),
    "sum-norm": (lambda m, x: m.b(x + m.a(x)), {"b": nn.BatchNorm2d(4)}, set()),
    "norm-sum": (lambda m, x: x + m.b(m.a(x)), {"b": nn.BatchNorm2d(4)}, {"filter", "layer"}),
    "group norm": (lambda m, x: m.b(m.a(x)), {"b": nn.GroupNorm(2, 4)}, {"layer"}),
    "group norm per channel": (lambda m, x: m.b(m.a(x)), {"b": nn.GroupNorm(4, 4)}, {"filter", "layer"}),
    "layer norm": (lambda m, x: m.b(m.a(x).movedim(1, -1)), {"b": nn.LayerNorm(4)}, {"layer"}),
    "two readers": (
        lambda m, x: m.b(m.a(x)) + m.c(m.a(x)),
        {"b": nn.BatchNorm2d(4), "c": nn.BatchNorm2d(4)},
        {"filter", "layer"},
    ),
    "one reader without norm": (lambda m, x: m.b(h := m.a(x)) + h, {"b": nn.BatchNorm2d(4)}, set()),
    "last layer": (lambda m, x: m.a(m.b(x)), {"b": nn.BatchNorm2d(4)}, set()),
    "zero gain": (lambda m, x: x + m.g * m.a(x), {"g": nn.Parameter(torch.zeros(()))}, set()),
}


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "plain"])
@pytest.mark.parametrize("name", STRUCTURES)
def test_the_table_of_the_page(name, bias):
    """Section 4.1: which structures are safe per filter, per layer, or not at all."""
    torch.manual_seed(0)
    run, parts, safe = STRUCTURES[name]
    model = Wired(run, a=conv(bias), **copy.deepcopy(parts))
    x = torch.randn(3, 4, 6, 6)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    for per in ("filter", "layer"):
        found = [weight.name for weight in find_scale_invariant(model, x, per=per)]
        assert (found == ["a"]) == (per in safe), (per, found)
    assert model.training
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_norms_behind_a_concatenation_are_found():
    torch.manual_seed(0)
    model = Wired(
        lambda m, x: m.d(torch.cat([m.c(x), m.a(x), m.b(x)], 1)),
        a=nn.Conv2d(3, 2, 1),
        b=nn.Conv2d(3, 4, 1),
        c=nn.Conv2d(3, 3, 1),
        d=nn.BatchNorm2d(9, eps=1e-30),
    ).double()
    x = torch.randn(4, 3, 5, 5).double()
    model(x)
    found = find_scale_invariant(model, x)
    assert {weight.name: weight.norms for weight in found} == {
        "a": ((model.d, 3),),
        "b": ((model.d, 5),),
        "c": ((model.d, 0),),
    }
    frozen = copy.deepcopy(model).eval()
    WeightRescaling(found).rescale_()
    torch.testing.assert_close(model.eval()(x), frozen(x), rtol=1e-10, atol=1e-10)


def test_shared_weights_are_rescaled_once():
    model = Wired(
        lambda m, x: m.b(m.a(x)) + m.c(m.e(x)),
        a=conv(False),
        b=nn.BatchNorm2d(4),
        c=nn.BatchNorm2d(4),
        e=conv(False),
    )
    model.e.weight = model.a.weight
    model = model.double()
    for norm in (model.b, model.c):
        norm.eps = 1e-30
    x = torch.randn(3, 4, 6, 6).double()
    model(x)
    frozen = copy.deepcopy(model).eval()
    rescaling = WeightRescaling([(model.a, model.b), (model.e, model.c)])
    assert len(rescaling.weights) == 1
    rescaling.rescale_()
    torch.testing.assert_close(model.a.weight.detach().flatten(1).norm(dim=1), torch.ones(4).double())
    torch.testing.assert_close(model.eval()(x), frozen(x), rtol=1e-10, atol=1e-10)


def test_the_finder_takes_a_function():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    x, y = torch.randn(8, 6, dtype=torch.float64), torch.randint(3, (8,))
    found = find_scale_invariant(model, forward=lambda m: {"loss": F.cross_entropy(m(x), y)})
    assert [weight.name for weight in found] == ["0"]
    assert found[0].module is model[0]
    with pytest.raises(ValueError, match="without numbers"):
        find_scale_invariant(model, forward=lambda m: None)
    with pytest.raises(ValueError, match="does not depend on its parameters"):
        find_scale_invariant(model, forward=lambda m: torch.ones(3))


def test_the_finder_by_order():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x):
            return self.norm(x + self.conv(x))

    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Dropout2d(0.1)),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 4, 1),
        nn.SiLU(),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 4, 1),
        Block(),
        nn.ConvTranspose2d(4, 4, 1),
        nn.BatchNorm2d(4),
    )
    assert [weight.name for weight in find_followed_by_norm(model)] == ["0.0", "7"]
    assert find_followed_by_norm(model)[0].norms == ((model[1], 0),)
    registered = [weight.name for weight in find_followed_by_norm(model, order="registered")]
    assert registered == ["0.0", "6.conv", "7"]
    measured = [weight.name for weight in find_scale_invariant(model, torch.randn(8, 4, 3, 3))]
    assert measured == ["0.0", "7"]


@pytest.mark.zoo
def test_a_residual_network():
    from varshift.integrations import declare_torchvision_operators

    declare_torchvision_operators()
    import torchvision

    model = torchvision.models.resnet18(zero_init_residual=True)
    found = find_scale_invariant(model, torch.randn(4, 3, 48, 48))
    assert [weight.name for weight in found] == [
        n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)
    ]
    assert all(len(weight.norms) == 1 for weight in found)


def test_a_network_of_blocks_that_start_with_a_norm():
    from varshift_lab.networks import preresnet

    model = preresnet(depth=20, num_classes=10, in_channels=3)
    names = [weight.name for weight in find_scale_invariant(model, torch.randn(4, 3, 16, 16))]
    convolutions = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    # The first convolution of each block is normalised by itself; the last is summed before a norm reads it.
    assert len(names) == 9
    assert set(names) < set(convolutions)
    assert {weight.name for weight in find_followed_by_norm(model)} <= set(names)


def test_a_weight_is_plain_data():
    layer = nn.ConvTranspose2d(4, 6, 3, groups=2)
    weight = ScaleInvariantWeight("up", layer)
    assert weight.units == 6
    view, axes = weight.by_filter(layer.weight, "filter")
    assert view.shape == (2, 2, 3, 3, 3)
    assert axes == (1, 3, 4)
    assert weight.norm("filter").numel() == 6
    assert weight.norm("layer").numel() == 1
