"""Batch renormalisation and the schedule of its limits."""

import copy
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from layer_tester import LayerTester

from varshift import functional, nn

WORKER = Path(__file__).parent / "workers" / "batch_renorm_rank.py"
OPEN = nn.RenormClipping.fixed(1.5, 0.4)


def equation(x, mean, var, weight, bias, eps, r_max, d_max):
    """The algorithm of the paper in float64, with r and d held fixed."""
    axes = [axis for axis in range(x.dim()) if axis != 1]
    shape = (1, -1, *[1] * (x.dim() - 2))
    batch_mean = x.mean(axes, keepdim=True)
    batch_deviation = ((x - batch_mean).square().mean(axes, keepdim=True) + eps).sqrt()
    deviation = (var.view(shape) + eps).sqrt()
    r = (batch_deviation / deviation).clamp(1 / r_max, r_max).detach()
    d = ((batch_mean - mean.view(shape)) / deviation).clamp(-d_max, d_max).detach()
    y = (x - batch_mean) / batch_deviation * r + d
    return y if weight is None else weight.view(shape) * y + bias.view(shape)


class RenormTester(LayerTester):
    shape = (3, 4, 3, 2)
    remembers = batch_dependent = True
    kind = nn.BatchRenorm2d
    torch_kind = torch.nn.BatchNorm2d
    arguments: ClassVar = {}

    def make(self, **factory):
        return self.kind(self.shape[1], **self.arguments, **factory)

    def peer(self):
        return self.torch_kind(self.shape[1])

    def reference(self, layer, x):
        limits = [float(limit) for limit in layer.clipping(layer.num_batches_tracked + 1)]
        return equation(
            x, layer.running_mean, layer.running_var, layer.weight, layer.bias, layer.eps, *limits
        )


class TestRenorm1dOfFeatures(RenormTester):
    shape = (7, 5)
    kind, torch_kind = nn.BatchRenorm1d, torch.nn.BatchNorm1d


class TestRenorm2d(RenormTester):
    pass


class TestRenorm2dWithOpenLimits(RenormTester):
    smooth = False  # no gradient through r and d; see the test of its gradient
    arguments: ClassVar = {"clipping": OPEN}


class TestRenorm2dWithoutParameters(RenormTester):
    smooth = False
    arguments: ClassVar = {"clipping": OPEN, "affine": False}


class TestRenorm2dWithCumulativeAverage(RenormTester):
    smooth = False
    arguments: ClassVar = {"clipping": OPEN, "momentum": None}


class TestRenorm3d(RenormTester):
    shape = (2, 3, 2, 3, 4)
    kind, torch_kind = nn.BatchRenorm3d, torch.nn.BatchNorm3d


def draw(*shape, seed=3):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moved(layer):
    """The layer with statistics and parameters away from their initial values."""
    channels = layer.num_features
    with torch.no_grad():
        layer.running_mean.copy_(draw(channels, seed=10))
        layer.running_var.copy_(0.5 + draw(channels, seed=11).square())
        if layer.affine:
            layer.weight.copy_(draw(channels, seed=12))
            layer.bias.copy_(draw(channels, seed=13))
    return layer


# ---------------------------------------------------------------------- what it equals


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"momentum": None},
        {"affine": False},
        {"track_running_stats": False},
        {"eps": 0.1, "momentum": 0.5},
    ],
    ids=str,
)
def test_closed_limits_are_batch_norm_bit_for_bit(arguments, dtype):
    ours = nn.BatchRenorm2d(4, **{"momentum": 0.1, **arguments}, dtype=dtype)
    peer = torch.nn.BatchNorm2d(4, **arguments, dtype=dtype)
    if ours.affine and ours.track_running_stats:
        peer.load_state_dict(moved(ours).state_dict())
    for step in range(3):
        x = draw(3, 4, 5, 6, seed=step).to(dtype).requires_grad_()
        y = x.detach().clone().requires_grad_()
        g = draw(3, 4, 5, 6, seed=20).to(dtype)
        one, other = ours(x), peer(y)
        assert torch.equal(one, other)
        one.backward(g)
        other.backward(g)
        assert torch.equal(x.grad, y.grad)
    for one, other in zip(ours.parameters(), peer.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)
    for name, value in peer.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name
    assert torch.equal(ours.eval()(x), peer.eval()(y))


def test_open_limits_are_evaluation():
    layer = moved(nn.BatchRenorm2d(4, clipping=nn.RenormClipping.fixed(1e6, 1e6), dtype=torch.float64))
    x = 3 * draw(3, 4, 5, 6) + 2
    before = layer.eval()(x)
    torch.testing.assert_close(layer.train()(x), before)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["rows", "last"])
@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 2), (3, 4, 5, 6)], ids=str)
def test_gradient_is_that_of_the_equation_with_both_corrections_fixed(shape, layout):
    kind = nn.BatchRenorm2d if len(shape) == 4 else nn.BatchRenorm1d
    layer = moved(kind(4, clipping=OPEN, dtype=torch.float64))
    x = draw(*shape)
    x = (x.to(memory_format=layout) if len(shape) == 4 else x).detach().requires_grad_()
    y, g = x.detach().clone().requires_grad_(), draw(*shape, seed=20)
    expected = equation(
        y,
        layer.running_mean.clone(),
        layer.running_var.clone(),
        layer.weight,
        layer.bias,
        layer.eps,
        1.5,
        0.4,
    )
    wanted = torch.autograd.grad(expected, [y, layer.weight, layer.bias], g)
    out = layer(x)
    out.backward(g)
    torch.testing.assert_close(out, expected)
    for one, other in zip((x.grad, layer.weight.grad, layer.bias.grad), wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_corrections_come_from_the_statistics_before_the_batch():
    layer = moved(nn.BatchRenorm2d(4, momentum=1.0, clipping=OPEN, dtype=torch.float64))
    mean, var = layer.running_mean.clone(), layer.running_var.clone()
    x = draw(3, 4, 5, 6)
    expected = equation(x, mean, var, layer.weight, layer.bias, layer.eps, 1.5, 0.4)
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer.running_mean, x.mean((0, 2, 3)))
    torch.testing.assert_close(layer.running_var, x.var((0, 2, 3)))


@pytest.mark.parametrize("offset", [0.0, 30.0, 3000.0])
@pytest.mark.parametrize("shape", [(8, 3, 9, 9), (8, 3, 2, 2), (64, 3)], ids=str)
def test_single_precision_stands_a_large_mean(shape, offset):
    x = draw(*shape) + offset
    mean, var = torch.full((3,), offset).double(), torch.full((3,), 0.8).double()
    limits = {"training": True, "r_max": 1.5, "d_max": 0.4}
    expected = functional.batch_renorm(x.float().double(), mean.clone(), var.clone(), **limits)
    out = functional.batch_renorm(x.float(), mean.float(), var.float(), **limits)
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-4 + 1e-6 * offset)


def test_the_function_is_what_the_layer_computes():
    layer = moved(nn.BatchRenorm2d(4, clipping=OPEN, dtype=torch.float64))
    mean, var, x = layer.running_mean.clone(), layer.running_var.clone(), draw(3, 4, 5, 6)
    out = functional.batch_renorm(
        x, mean, var, layer.weight, layer.bias, True, layer.momentum, layer.eps, r_max=1.5, d_max=0.4
    )
    assert torch.equal(layer(x), out)
    assert torch.equal(layer.running_var, var)


# ---------------------------------------------------------------------- the schedule


@pytest.mark.parametrize(
    ("step", "scale", "shift"),
    [
        (1, 1, 0),
        (5_000, 1, 0),
        (10_000, 1 + 2 / 7, 1.25),
        (22_500, 2, 4.375),
        (25_000, 1 + 8 / 7, 5),
        (40_000, 3, 5),
        (9_000_000, 3, 5),
    ],
)
def test_published_schedule(step, scale, shift):
    layer = nn.BatchRenorm2d(2)
    limits = layer.clipping(torch.tensor(step))
    assert [float(limit) for limit in limits] == pytest.approx([scale, shift], rel=1e-6)


def test_schedule_follows_the_state_dict():
    clipping = nn.RenormClipping(scale=4, shift=2, warmup=2, scale_end=6, shift_end=4)
    layer = nn.BatchRenorm2d(3, clipping=clipping, dtype=torch.float64)
    batches = [draw(4, 3, 3, 3, seed=seed) * (1 + seed) for seed in range(6)]
    straight = [layer(x) for x in batches]
    other = nn.BatchRenorm2d(3, clipping=clipping, dtype=torch.float64)
    resumed = [other(x) for x in batches[:3]]
    third = nn.BatchRenorm2d(3, clipping=clipping, dtype=torch.float64)
    third.load_state_dict(other.state_dict())
    resumed += [third(x) for x in batches[3:]]
    for one, two in zip(straight, resumed, strict=True):
        assert torch.equal(one, two)
    assert not torch.equal(
        straight[-1], nn.BatchRenorm2d(3, clipping=clipping, dtype=torch.float64)(batches[-1])
    )


def test_any_function_of_the_step_is_a_schedule():
    steps = []

    def clipping(step):
        steps.append(int(step))
        return 1.5, 0.4

    ours, fixed = (moved(nn.BatchRenorm2d(4, clipping=c, dtype=torch.float64)) for c in (clipping, OPEN))
    x = draw(3, 4, 5, 6)
    for _ in range(3):
        assert torch.equal(ours(x), fixed(x))
    assert steps == [1, 2, 3]


@pytest.mark.parametrize("momentum", [0.1, None])
def test_one_graph_serves_all_steps(momentum):
    from torch._dynamo.testing import CompileCounter

    torch.compiler.reset()
    counter = CompileCounter()
    clipping = nn.RenormClipping(warmup=1, scale_end=4, shift_end=3)
    layer = nn.BatchRenorm2d(3, momentum=momentum, clipping=clipping)
    twin = copy.deepcopy(layer)
    compiled = torch.compile(layer, fullgraph=True, backend=counter)
    for seed in range(5):
        x = (2 * draw(4, 3, 3, 3, seed=seed) + seed).float()
        torch.testing.assert_close(compiled(x), twin(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.running_var, twin.running_var)
    assert counter.frame_count == 1


# ---------------------------------------------------------------------- neighbours


def test_states_of_batch_norm_and_renorm_are_interchangeable():
    ours, peer = nn.BatchRenorm2d(3), torch.nn.BatchNorm2d(3)
    ours(torch.randn(4, 3, 5, 5))
    peer.load_state_dict(ours.state_dict())
    nn.BatchRenorm2d(3).load_state_dict(peer.state_dict())
    assert isinstance(ours, torch.nn.BatchNorm2d)


def test_recalibration_measures_plain_batch_norm():
    import varshift as vs

    def network(norm):
        torch.manual_seed(0)
        return torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3), norm(4), torch.nn.ReLU(), torch.nn.Conv2d(4, 4, 3), norm(4)
        )

    batches = [draw(6, 3, 8, 8, seed=seed).float() for seed in range(4)]
    ours = network(lambda channels: nn.BatchRenorm2d(channels, clipping=nn.RenormClipping.fixed(3, 5)))
    peer = network(torch.nn.BatchNorm2d)
    for model in (ours, peer):
        for norm in (model[1], model[4]):  # statistics far off, as after a change of the data
            norm.running_mean.fill_(2)
            norm.running_var.fill_(9)
        vs.recalibrate(model, batches)
    for name, value in peer.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value)


def test_two_processes_share_statistics_and_step(tmp_path):
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(rank), str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    output = [process.communicate(timeout=120)[0] for process in processes]
    assert all(process.returncode == 0 for process in processes), "\n".join(output)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    # the second process was behind: it used the statistics and the step of the first
    for name, value in first["used"].items():
        assert torch.equal(second["used"][name], value), name
    assert first["used"]["num_batches_tracked"] == 5
    for name, value in first["gradients"].items():
        assert torch.equal(second["gradients"][name], value), name
    clipping = nn.RenormClipping(scale=2, shift=1, warmup=2, scale_end=10, shift_end=10)
    limits = [float(limit) for limit in clipping(first["used"]["num_batches_tracked"] + 1)]
    for result in (first, second):
        layer = nn.BatchRenorm2d(3, clipping=clipping)
        layer.load_state_dict(result["used"])
        expected = equation(
            result["x"].double(),
            layer.running_mean.double(),
            layer.running_var.double(),
            layer.weight.double(),
            layer.bias.double(),
            layer.eps,
            *limits,
        )
        torch.testing.assert_close(result["out"].double(), expected, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------- bad arguments


def test_bad_arguments():
    with pytest.raises(ValueError, match="eps=0"):
        nn.BatchRenorm2d(3, eps=0)
    with pytest.raises(ValueError, match="momentum=2"):
        nn.BatchRenorm2d(3, momentum=2)
    with pytest.raises(ValueError, match="num_features=0"):
        nn.BatchRenorm2d(0)
    with pytest.raises(ValueError, match=r"5 channels.*num_features=3"):
        nn.BatchRenorm2d(3)(torch.ones(2, 5, 4, 4))
    with pytest.raises(ValueError, match="4D"):
        nn.BatchRenorm2d(3)(torch.ones(2, 3, 4))
    with pytest.raises(ValueError, match="more than 1 value"):
        nn.BatchRenorm1d(3)(torch.ones(1, 3))
    with pytest.raises(ValueError, match=r"scale=0\.5 must be at least 1"):
        nn.RenormClipping(scale=0.5)
    with pytest.raises(ValueError, match="shift=-1"):
        nn.RenormClipping(shift=-1)
    with pytest.raises(ValueError, match="scale_end=10 must not lie before"):
        nn.RenormClipping(warmup=20, scale_end=10)
