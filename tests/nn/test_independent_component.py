"""The independent-component layer: the battery, its batch norm, and the theorem that it rests on."""

import math

import pytest
import torch
from layer_tester import LayerTester
from torch import nn

import varshift
from varshift.nn import (
    IndependentComponent1d,
    IndependentComponent2d,
    IndependentComponent3d,
)


class ComponentTester(LayerTester):
    noisy = True
    remembers = True
    batch_dependent = True
    shape = (3, 4, 3, 2)
    layer = IndependentComponent2d
    norm = nn.BatchNorm2d

    def make(self, **factory):
        return self.layer(self.shape[1], drop_prob=0.3, **factory)

    def quiet(self, **factory):
        return self.layer(self.shape[1], drop_prob=0.0, **factory)

    def peer(self):
        return nn.Sequential(self.norm(self.shape[1]), nn.Dropout(0.3))

    def reference(self, layer, x):
        axes = [axis for axis in range(x.dim()) if axis != 1]
        mean, var = x.mean(axes, keepdim=True), x.var(axes, unbiased=False, keepdim=True)
        over = (1, -1, *(1 for _ in x.shape[2:]))
        return (x - mean) / (var + layer.norm.eps).sqrt() * layer.weight.view(over) + layer.bias.view(over)


class TestIndependentComponent2d(ComponentTester):
    pass


class TestIndependentComponent1d(ComponentTester):
    layer, norm, shape = IndependentComponent1d, nn.BatchNorm1d, (8, 5)


class TestIndependentComponentOfSequences(ComponentTester):
    layer, norm, shape = IndependentComponent1d, nn.BatchNorm1d, (3, 4, 5)


class TestIndependentComponent3d(ComponentTester):
    layer, norm, shape = IndependentComponent3d, nn.BatchNorm3d, (2, 3, 3, 2, 2)


PAIRS = [
    (IndependentComponent1d, nn.BatchNorm1d, (9, 4)),
    (IndependentComponent2d, nn.BatchNorm2d, (3, 4, 5, 2)),
    (IndependentComponent3d, nn.BatchNorm3d, (3, 4, 2, 2, 3)),
]
SETTINGS = [
    {},
    {"eps": 0.1, "momentum": 0.3},
    {"momentum": None},
    {"affine": False},
    {"track_running_stats": False},
]


@pytest.mark.parametrize(("layer", "norm", "shape"), PAIRS)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_without_noise_it_is_torchs_batch_norm_bit_by_bit(layer, norm, shape, settings):
    ours, torchs = layer(4, drop_prob=0.0, **settings), norm(4, **settings)
    noisy = layer(4, drop_prob=0.9, **settings)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        x = torch.randn(shape, generator=generator) * 2 + 1
        assert torch.equal(ours(x), torchs(x))
        noisy(x)
    x = torch.randn(shape, generator=generator)
    expected = torchs.eval()(x)
    assert torch.equal(ours.eval()(x), expected)
    assert torch.equal(noisy.eval()(x), expected)  # noise never enters the layer's own statistics
    for name, tensor in torchs.state_dict().items():
        assert torch.equal(getattr(ours, name), tensor)


def test_the_state_of_a_batch_norm_loads_where_it_stood():
    before = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    before(torch.randn(2, 3, 6, 6))
    after = nn.Sequential(nn.Conv2d(3, 4, 3), IndependentComponent2d(4))
    after.load_state_dict(before.state_dict())
    again = nn.Sequential(nn.Conv2d(3, 4, 3), IndependentComponent2d(4))
    again.load_state_dict(after.state_dict())
    x = torch.randn(2, 3, 6, 6)
    expected = before.eval()(x)
    assert torch.equal(after.eval()(x), expected)
    assert torch.equal(again.eval()(x), expected)
    with pytest.raises(RuntimeError, match=r"norm\.weight"):
        IndependentComponent2d(4, affine=False).load_state_dict(nn.BatchNorm2d(4).state_dict())


def test_attributes_of_the_norm_are_set_on_the_norm():
    layer = IndependentComponent2d(4, eps=0.1, momentum=0.3)
    assert (layer.eps, layer.momentum, layer.affine, layer.num_features) == (0.1, 0.3, True, 4)
    with pytest.raises(AttributeError):
        layer.momentum = 0.01
    with pytest.raises(KeyError):
        layer.weight = nn.Parameter(torch.ones(4))
    layer.norm.momentum = 0.01
    assert layer.momentum == 0.01


def test_synchronised_norms_keep_the_noise():
    model = nn.Sequential(IndependentComponent2d(3, drop_prob=0.5), nn.Conv2d(3, 2, 1))
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert isinstance(model[0].norm, nn.SyncBatchNorm)
    assert model[0].num_features == 3
    out = model[0](torch.randn(16, 3, 8, 8))
    assert 0.4 < float((out == 0).float().mean()) < 0.6
    assert not (model[0].eval()(torch.randn(16, 3, 8, 8)) == 0).any()


def test_swa_refreshes_its_statistics():
    model = nn.Sequential(IndependentComponent1d(3, drop_prob=0.2), nn.Linear(3, 2))
    data = [torch.randn(64, 3) * 3 + 5 for _ in range(4)]
    torch.optim.swa_utils.update_bn(data, model)
    torch.testing.assert_close(model[0].running_mean, torch.cat(data).mean(0), rtol=1e-4, atol=1e-4)


def test_recalibration_reaches_the_norm_inside():
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.ReLU(), IndependentComponent2d(8, drop_prob=0.5)),
        *(nn.Conv2d(8, 4, 3), nn.ReLU(), IndependentComponent2d(4, drop_prob=0.5)),
        *(nn.Flatten(), nn.Linear(256, 3)),
    )
    loader = [(torch.randn(32, 3, 12, 12), torch.randint(3, (32,))) for _ in range(4)]
    for x, _ in loader * 20:
        model(x)
    learned = model[5].running_var.clone()
    handle = varshift.recalibrate(model, loader)
    assert len(handle.layers) == 2
    model.eval()
    with torch.no_grad():
        signal = torch.cat([model[:5](x) for x, _ in loader]).var((0, 2, 3))
    # Upstream, recalibration normalises with batch statistics and evaluation with pooled ones.
    torch.testing.assert_close(model[5].running_var, signal, rtol=0.02, atol=0)
    assert (learned > 1.2 * signal).all()


# ---------------------------------------------------------------------- the theorem (page, sections 2 and 8)


def entropy(table):
    return -sum(p * math.log(p) for p in table.flatten().tolist() if p > 0)


def information(table):
    return entropy(table.sum(0)) + entropy(table.sum(1)) - entropy(table)


def dropped(joint, values, keep):
    """Joint distribution of two independently dropped variables; index 0 stands for a zero."""
    size = len(values)
    place = [0 if value == 0 else number + 1 for number, value in enumerate(values)]
    out = torch.zeros(size + 1, size + 1, dtype=torch.float64)
    for i in range(size):
        for j in range(size):
            for gate_i, gate_j in ((0, 0), (0, 1), (1, 0), (1, 1)):
                weight = (keep if gate_i else 1 - keep) * (keep if gate_j else 1 - keep)
                out[place[i] if gate_i else 0, place[j] if gate_j else 0] += joint[i, j] * weight
    return out


@pytest.fixture
def joint():
    generator = torch.Generator().manual_seed(3)
    table = torch.rand(4, 4, dtype=torch.float64, generator=generator) + torch.eye(4)
    return table / table.sum()


@pytest.mark.parametrize("keep", [0.95, 0.8, 0.5])
def test_information_falls_by_the_square_of_keep(joint, keep):
    values = [-1.5, -0.5, 0.5, 1.5]
    out = dropped(joint, values, keep)
    assert information(out) / information(joint) == pytest.approx(keep**2, abs=1e-9)
    gate = -keep * math.log(keep) - (1 - keep) * math.log(1 - keep)
    assert entropy(out.sum(1)) == pytest.approx(keep * entropy(joint.sum(1)) + gate, abs=1e-9)


@pytest.mark.parametrize("keep", [0.95, 0.8, 0.5])
def test_an_atom_at_zero_breaks_the_equality_and_the_layers_norm_removes_it(joint, keep):
    values = [0.0, 0.5, 1.0, 1.5]  # a rectified input
    below = information(dropped(joint, values, keep)) / information(joint)
    assert below < keep**2 - 1e-3
    centred = [value - 0.6 for value in values]
    assert information(dropped(joint, centred, keep)) / information(joint) == pytest.approx(keep**2, abs=1e-9)


@pytest.mark.parametrize("keep", [0.95, 0.8, 0.5])
def test_copies_keep_their_information_as_a_group(keep):
    # Against all m copies of a fair bit, +1 or -1, each dropped by itself: keep (1 - (1 - keep)^m).
    copies, table = 5, {}
    for value in (-1, 1):
        for gates in range(2 ** (copies + 1)):
            bits = [gates >> k & 1 for k in range(copies + 1)]
            weight = 0.5 * math.prod(keep if bit else 1 - keep for bit in bits)
            cell = (value * bits[0], tuple(value * bit for bit in bits[1:]))
            table[cell] = table.get(cell, 0.0) + weight
    rows, columns = sorted({cell[0] for cell in table}), sorted({cell[1] for cell in table})
    full = torch.tensor([[table.get((r, c), 0.0) for c in columns] for r in rows], dtype=torch.float64)
    assert information(full) / math.log(2) == pytest.approx(keep * (1 - (1 - keep) ** copies), abs=1e-9)


def correlated(samples, rho, mean, seed):
    generator = torch.Generator().manual_seed(seed)
    one, other = torch.randn(2, samples, generator=generator, dtype=torch.float64)
    return torch.stack([one, rho * one + math.sqrt(1 - rho**2) * other], 1) + mean


def correlation(y):
    return float(torch.corrcoef(y.T.double())[0, 1])


@pytest.mark.parametrize("keep", [0.95, 0.8, 0.5])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_correlation_of_two_outputs(keep, offset):
    # A learned shift of `offset` standard deviations shrinks the correlation further.
    samples, rho = 400_000, 0.6
    layer = IndependentComponent1d(2, drop_prob=1 - keep, dtype=torch.float64)
    nn.init.constant_(layer.bias, offset)
    torch.manual_seed(11)
    out = correlation(layer(correlated(samples, rho, 3.0, seed=5)).detach())
    expected = keep * rho / (1 + (1 - keep) * offset**2)
    assert abs(out - expected) < 5 / math.sqrt(samples)  # the error of a correlation is below 1 / sqrt(n)


@pytest.mark.parametrize("keep", [0.95, 0.8, 0.5])
def test_moments_of_the_outputs(keep):
    samples = 200_000
    layer = IndependentComponent1d(3, affine=False, drop_prob=1 - keep, dtype=torch.float64)
    torch.manual_seed(12)
    out = layer(torch.randn(samples, 3, dtype=torch.float64) * 2 + 7)
    assert (out.mean(0).abs() < 5 * math.sqrt(1 / keep / samples)).all()
    # E[y^4] = 3 / keep^3 for normal inputs bounds the error of the variance.
    error = math.sqrt((3 / keep**3 - 1 / keep**2) / samples)
    assert ((out.var(0) - 1 / keep).abs() < 5 * error).all()


@pytest.mark.parametrize("keep", [0.95, 0.5])
def test_second_moments_are_ridged_evenly(keep):
    # E[y y^T] = R + (1 - keep) / keep I, whatever the scale of the features was.
    samples = 300_000
    x = correlated(samples, 0.9, 0.0, seed=6) * torch.tensor([0.1, 30.0], dtype=torch.float64)
    layer = IndependentComponent1d(2, affine=False, drop_prob=1 - keep, dtype=torch.float64, eps=1e-12)
    torch.manual_seed(13)
    y = layer(x)
    expected = torch.corrcoef(x.T) + (1 - keep) / keep * torch.eye(2, dtype=torch.float64)
    error = 5 * math.sqrt(3 / keep**3 / samples)
    torch.testing.assert_close(y.T @ y / samples, expected, rtol=0, atol=error)


# ---------------------------------------------------------------------- in a residual network


class Unit(nn.Module):
    """Twice ReLU, independent component, convolution; variant A, on a shortcut left alone."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.branch = nn.Sequential(
            *(nn.ReLU(), IndependentComponent2d(inputs)),
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            *(nn.ReLU(), IndependentComponent2d(outputs)),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
        )
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x):
        return self.shortcut(x) + self.branch(x)


def residual_network():
    units = [nn.Conv2d(3, 16, 3, 1, 1, bias=False)]
    width = 16
    for planes in (16, 32, 64):
        for place in range(3):
            units.append(Unit(width, planes, 2 if planes > 16 and place == 0 else 1))
            width = planes
    head = (nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    return nn.Sequential(*units, *head)


def test_a_residual_network_of_depth_20():
    torch.manual_seed(0)
    model = residual_network()
    components = [module for module in model.modules() if isinstance(module, IndependentComponent2d)]
    assert len(components) == 18
    assert sum(parameter.numel() for parameter in model.parameters()) == 272_154
    # At the default rate each norm learns a variance 3 to 12 % above the one it meets without noise, while
    # all norms upstream normalise with the batch.
    seen = {component: [] for component in components}
    for component in components:
        component.norm.register_forward_pre_hook(
            lambda _, args, values=seen[component]: values.append(float(args[0].var((0, 2, 3)).mean()))
        )
    x = torch.randn(64, 3, 32, 32)
    with torch.no_grad():
        model(x)
        for component in components:
            component.noise.eval()
        model(x)
    ratios = [noisy / clean for noisy, clean in seen.values()]
    assert ratios[0] == pytest.approx(1, abs=1e-6)  # nothing upstream
    average = math.exp(sum(math.log(ratio) for ratio in ratios[1:]) / len(ratios[1:]))
    assert 1.03 < average < 1.12


@pytest.mark.parametrize("drop_prob", [-0.1, 1.1, float("nan")])
def test_bad_rates_are_named(drop_prob):
    with pytest.raises(ValueError, match=f"drop_prob={drop_prob}"):
        IndependentComponent2d(4, drop_prob=drop_prob)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_features": 0}, "num_features=0"),
        ({"num_features": 4, "eps": -1.0}, "eps=-1.0"),
        ({"num_features": 4, "momentum": 2}, "momentum=2"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        IndependentComponent2d(**arguments)


def test_another_number_of_channels_is_named():
    with pytest.raises(ValueError, match=r"3 channels .* num_features=4"):
        IndependentComponent2d(4)(torch.randn(2, 3, 5, 5))
