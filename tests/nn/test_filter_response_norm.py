"""Filter response normalisation, its threshold, and the two in one pass."""

import copy
from typing import ClassVar

import pytest
import torch
import torch.utils.checkpoint
from hypothesis import strategies as st
from layer_tester import LayerTester

from varshift import functional, nn


def equation(x, gamma, beta, tau, eps):
    """Section 1 of the paper, value by value in float64."""
    axes, shape = tuple(range(2, x.dim())), (1, -1) + (1,) * (x.dim() - 2)
    power = (x * x).mean(axes, keepdim=True) if axes else x * x
    y = gamma.view(shape) * x / (power + eps).sqrt() + beta.view(shape)
    return y if tau is None else torch.where(y >= tau.view(shape), y, tau.view(shape).expand_as(y))


class FilterResponseTester(LayerTester):
    shape = (3, 4, 3, 2)
    kind = nn.FilterResponseNorm2d
    arguments: ClassVar = {}

    def make(self, **factory):
        return self.kind(self.shape[1], **self.arguments, **factory)

    def reference(self, layer, x):
        eps = layer.eps if layer.learned_eps is None else layer.eps + layer.learned_eps.abs()
        if torch.is_tensor(eps) and eps.numel() > 1:
            eps = eps.view(1, -1, *[1] * (x.dim() - 2))
        plain = torch.ones(x.shape[1], dtype=x.dtype)
        gamma = plain if layer.weight is None else layer.weight
        beta = 0 * plain if layer.bias is None else layer.bias
        return equation(x, gamma, beta, layer.tau, eps)


class TestNorm1dOfSequences(FilterResponseTester):
    shape = (3, 4, 5)
    kind = nn.FilterResponseNorm1d


class TestNorm1dOfFeatures(FilterResponseTester):
    shape = (4, 6)
    kind = nn.FilterResponseNorm1d
    arguments: ClassVar = {"learn_eps": True, "learned_eps_init": 0.1}


class TestNorm2d(FilterResponseTester):
    pass


class TestNorm2dWithoutParameters(FilterResponseTester):
    arguments: ClassVar = {"affine": False}

    def test_reset_parameters_restores_a_new_layer(self):
        assert not self.make().state_dict()


class TestNorm3d(FilterResponseTester):
    shape = (2, 3, 2, 3, 4)
    kind = nn.FilterResponseNorm3d
    arguments: ClassVar = {"learn_eps": True, "eps_per_channel": True}


class TestPair1d(FilterResponseTester):
    shape = (4, 6)
    kind = nn.FilterResponseNormTLU1d
    arguments: ClassVar = {"learn_eps": True, "learned_eps_init": 0.1, "eps_per_channel": True}


class TestPair2d(FilterResponseTester):
    kind = nn.FilterResponseNormTLU2d


class TestPair2dWithLearnedConstant(FilterResponseTester):
    kind = nn.FilterResponseNormTLU2d
    arguments: ClassVar = {"learn_eps": True}


class TestPair2dWithoutScale(FilterResponseTester):
    kind = nn.FilterResponseNormTLU2d
    arguments: ClassVar = {"affine": False}


class TestPair3d(FilterResponseTester):
    shape = (2, 3, 2, 3, 4)
    kind = nn.FilterResponseNormTLU3d


class TestThreshold(LayerTester):
    shape = (3, 4, 3, 2)

    def make(self, **factory):
        return nn.ThresholdedLinearUnit(self.shape[1], init=-0.3, **factory)

    def peer(self):
        return torch.nn.ReLU()

    def reference(self, layer, x):
        tau = layer.tau.view(1, -1, *[1] * (x.dim() - 2))
        return torch.where(x >= tau, x, tau.expand_as(x))

    def shapes(self):
        extents = st.lists(st.integers(1, 4), max_size=3)
        return extents.map(lambda sizes: (3, self.shape[1], *sizes))


# ---------------------------------------------------------------------- the vectors of the derivation

X = "1 -2 .5 3 -1 0 .25 .75 -1.5 2 -.5 1 -3 .1 .2 -.4 1 2 4 -4 1 -1 .5 -.5"
Z = (
    "1.04085637873 -0.25 0.570428189365 2.92256913619 -0.25 0.1 "
    "0.05 0.05 0.444479352961 0.05 0.05 0.05 "
    "-0.25 0.197467670178 0.294935340356 -0.25 1.07467670178 2.04935340356 "
    "0.05 0.634050331123 0.05 0.05 0.05 0.05"
)
DX = (
    "-0.824416357198 -0.515136956682 -0.765029320623 -0.027022486898 -0.257568478341 -0.611556646174 "
    "0.006940029259 0.020820087776 0.108738340139 0.055520234069 -0.013880058517 0.027760117035 "
    "0.332308743211 0.13512454716 0.221515259231 0.044307832428 0.327834934731 0.314533023838 "
    "-0.072524841835 -0.08385959525 -0.018131210459 0.018131210459 -0.009065605229 0.009065605229"
)


def numbers(text):
    return torch.tensor([float(word) for word in text.split()], dtype=torch.float64)


X = numbers(X).view(2, 2, 2, 3)
UPSTREAM = ((torch.arange(24, dtype=torch.float64) - 11.5) / 10).view(2, 2, 2, 3)


def vector_layer(**arguments):
    layer = nn.FilterResponseNormTLU2d(2, dtype=torch.float64, **arguments)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([1.5, -0.5], dtype=torch.float64))
        layer.bias.copy_(torch.tensor([0.1, -0.2], dtype=torch.float64))
        layer.tau.copy_(torch.tensor([-0.25, 0.05], dtype=torch.float64))
    return layer


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["rows", "last"])
def test_vector_a(layout):
    layer = vector_layer(learn_eps=True)
    x = X.to(memory_format=layout).detach().requires_grad_()
    z = layer(x)
    close = {"rtol": 0, "atol": 1e-11}
    torch.testing.assert_close(z.flatten(), numbers(Z), **close)
    z.backward(UPSTREAM)
    torch.testing.assert_close(x.grad.flatten(), numbers(DX), **close)
    torch.testing.assert_close(layer.weight.grad, numbers("-1.569315005215 -0.799939949611"), **close)
    torch.testing.assert_close(layer.bias.grad, numbers("-2.2 0.4"), **close)
    torch.testing.assert_close(layer.tau.grad, numbers("-1.4 3.2"), **close)
    torch.testing.assert_close(layer.learned_eps.grad, numbers("0.469283411539"), **close)


@pytest.mark.parametrize(
    ("eps", "expected"),
    [
        (1e-6, "1.040874887191 -0.25 0.570437443595 2.922624661572 -0.25 0.1"),
        (1e-5, "1.040873221384 -0.25 0.570436610692 2.922619664153 -0.25 0.1"),
    ],
)
def test_vector_a_with_a_fixed_constant(eps, expected):
    z = vector_layer(eps=eps)(X)
    torch.testing.assert_close(z.flatten()[:6], numbers(expected), rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("learn", "values", "slopes"),
    [
        (
            False,
            "0.99503719021 -0.998752338878 0.999998000006 0 0.707106781187 -0.999999944444",
            "0.985185336842 0.124532710583 0.000007999952 1000 353.553390593274 0.000000037037",
        ),
        (
            True,
            "0.705345615859 -0.893534103218 0.999798061185 0 0.099014754298 -0.999994388936",
            "35.442739901352 9.006681080336 0.000807510599 99.503719020999 98.044021412396 0.000003740678",
        ),
    ],
)
def test_vector_b(learn, values, slopes):
    layer = nn.FilterResponseNorm1d(3, learn_eps=learn, dtype=torch.float64)
    x = torch.tensor([[0.01, -0.02, 0.5], [0, 0.001, -3]], dtype=torch.float64, requires_grad=True)
    out = layer(x)
    torch.testing.assert_close(out.flatten(), numbers(values), rtol=0, atol=1e-11)
    out.sum().backward()
    torch.testing.assert_close(x.grad.flatten(), numbers(slopes), rtol=1e-11, atol=1e-11)


# ---------------------------------------------------------------------- gradients


def draw(*shape, seed=3):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(2, 2, 2, 3), (3, 2, 3), (3, 4), (2, 2, 1, 2, 2), (2, 3, 1, 1)])
@pytest.mark.parametrize("sizes", ["one", "each"])
def test_gradients_once_and_twice(shape, sizes):
    channels = shape[1]
    parameters = [1 + 0.3 * draw(channels, seed=4), draw(channels, seed=5), 0.1 * draw(channels, seed=6)]
    learned = 0.3 + draw(1 if sizes == "one" else channels, seed=7).abs()
    inputs = [t.requires_grad_() for t in (draw(*shape), *parameters, learned)]

    def run(x, weight, bias, tau, learned):
        return functional.filter_response_norm(x, weight, bias, tau, 1e-3, learned)

    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


def test_threshold_gradients_once_and_twice():
    inputs = (draw(3, 4, 5).requires_grad_(), draw(4, seed=4).requires_grad_())
    assert torch.autograd.gradcheck(functional.thresholded_linear_unit, inputs)
    weights = draw(3, 4, 5, seed=5)

    def squared(x, tau):
        return (functional.thresholded_linear_unit(x, tau).square() * weights).sum()

    assert torch.autograd.gradgradcheck(squared, inputs)


@pytest.mark.parametrize("learned", [0.3, -0.3, 0.0])
def test_constant_is_learned_through_its_absolute_value(learned):
    layer = nn.FilterResponseNorm2d(2, learn_eps=True, learned_eps_init=learned, dtype=torch.float64)
    other = nn.FilterResponseNorm2d(2, learn_eps=True, learned_eps_init=abs(learned), dtype=torch.float64)
    for one in (layer, other):
        (one(X) * UPSTREAM).sum().backward()
    assert torch.equal(layer(X), other(X))
    sign = -1.0 if learned < 0 else 1.0
    assert layer.learned_eps.grad.item() == sign * other.learned_eps.grad.item()
    assert (layer.learned_eps.grad.item() == 0) == (learned == 0)


def test_a_tie_goes_to_the_signal():
    layer = nn.FilterResponseNormTLU2d(2)  # shift and threshold start at 0
    x = torch.zeros(3, 2, 4, 4, requires_grad=True)
    layer(x).sum().backward()
    assert torch.equal(layer.tau.grad, torch.zeros(2))
    assert torch.equal(layer.bias.grad, torch.full((2,), 48.0))
    # finite although nothing but the constant is under the root
    torch.testing.assert_close(x.grad, torch.full_like(x, 1000.0))
    unit = nn.ThresholdedLinearUnit(2, init=0.5)
    y = torch.full((3, 2), 0.5, requires_grad=True)
    unit(y).sum().backward()
    assert torch.equal(y.grad, torch.ones(3, 2))
    assert torch.equal(unit.tau.grad, torch.zeros(2))


def test_gradient_is_orthogonal_to_the_input_but_for_the_constant():
    layer = nn.FilterResponseNorm2d(4, eps=0.2, dtype=torch.float64)
    x, g = draw(3, 4, 5, 6).requires_grad_(), draw(3, 4, 5, 6, seed=4)
    (layer(x) * g).sum().backward()
    power = x.detach().square().mean((2, 3))
    along = (x.detach() * x.grad).sum((2, 3))
    expected = (x.detach() * g).sum((2, 3)) / (power + 0.2).sqrt() * 0.2 / (power + 0.2)
    torch.testing.assert_close(along, expected)


@pytest.mark.parametrize("factor", [0.01, 3.0, 1e4])
def test_scale_of_the_input_does_not_matter(factor):
    layer = nn.FilterResponseNormTLU2d(4, eps=1e-30, dtype=torch.float64)
    x, y = draw(3, 4, 5, 6).requires_grad_(), (factor * draw(3, 4, 5, 6)).requires_grad_()
    g = draw(3, 4, 5, 6, seed=4)
    one, other = layer(x), layer(y)
    torch.testing.assert_close(other, one)
    (one * g).sum().backward()
    (other * g).sum().backward()
    torch.testing.assert_close(y.grad * factor, x.grad)


# ---------------------------------------------------------------------- one pass and two


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["rows", "last"])
@pytest.mark.parametrize("shape", [(3, 5, 7, 6), (9, 4, 8, 8), (70, 3, 4, 7), (9, 7, 1, 1)], ids=str)
@pytest.mark.parametrize("block", [1, 300, 1 << 20])
def test_pair_is_right_in_every_block(monkeypatch, block, shape, layout, dtype):
    monkeypatch.setattr("varshift.functional._maps._BLOCK", block)
    pair = nn.FilterResponseNormTLU2d(shape[1], dtype=dtype)
    with torch.no_grad():
        for seed, parameter in enumerate(pair.parameters()):
            parameter.add_(0.2 * draw(shape[1], seed=seed))
    x = draw(*shape).to(dtype).to(memory_format=layout).requires_grad_()
    y = x.detach().double().requires_grad_()
    weights = draw(*shape, seed=8)
    out = pair(x)
    (out * weights.to(dtype)).sum().backward()
    expected = equation(y, *(p.double() for p in (pair.weight, pair.bias, pair.tau)), pair.eps)
    inputs = [y, *pair.parameters()]
    wanted = torch.autograd.grad((expected * weights).sum(), inputs)
    tolerance = {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(out.double(), expected, **tolerance)
    torch.testing.assert_close(x.grad.double(), wanted[0], **tolerance)
    for parameter, gradient in zip(pair.parameters(), wanted[1:], strict=True):
        scale = gradient.abs().max().clamp(min=1)
        torch.testing.assert_close(parameter.grad / scale, gradient / scale, **tolerance)


def test_pair_keeps_the_input_and_little_else():
    layer, kept = nn.FilterResponseNormTLU2d(8), {}
    x = torch.randn(4, 8, 16, 16, requires_grad=True)

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(x)
    assert sum(kept.values()) <= x.nbytes + 4 * 4 * 8 + 3 * 4 * 8


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_does_not_overflow(dtype):
    x = (300 * draw(2, 3, 8, 8)).to(dtype).requires_grad_()
    layer = nn.FilterResponseNormTLU2d(3, dtype=dtype)
    out = layer(x)
    out.float().sum().backward()
    exact = copy.deepcopy(layer).double()(x.detach().double())
    assert out.dtype == dtype
    assert torch.isfinite(x.grad).all()
    torch.testing.assert_close(out.double(), exact, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


def test_nan_is_not_hidden_by_the_threshold():
    x = torch.ones(2, 2, 2, 2)
    x[0, 0, 0, 0] = float("nan")
    assert nn.FilterResponseNormTLU2d(2)(x)[0, 0].isnan().all()
    assert nn.ThresholdedLinearUnit(2)(x)[0, 0, 0, 0].isnan()


# ---------------------------------------------------------------------- other ways to run


def test_function_transforms():
    layer = nn.FilterResponseNormTLU2d(3, dtype=torch.float64)
    parameters = dict(layer.named_parameters())
    x = draw(4, 3, 5, 5)

    def loss(parameters, sample):
        return torch.func.functional_call(layer, parameters, (sample[None],)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for name, parameter in layer.named_parameters():
        for sample in range(4):
            (expected,) = torch.autograd.grad(loss(parameters, x[sample]), parameter)
            torch.testing.assert_close(each[name][sample], expected)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own forward mode
def test_forward_mode_and_checkpointing():
    layer = nn.FilterResponseNormTLU2d(3, dtype=torch.float64)
    x, direction, g = draw(2, 3, 4, 4), draw(2, 3, 4, 4, seed=4), draw(2, 3, 4, 4, seed=5)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, direction)
        _, tangent = torch.autograd.forward_ad.unpack_dual(layer(dual))
    y = x.clone().requires_grad_()
    layer(y).backward(g)
    torch.testing.assert_close((tangent * g).sum(), (y.grad * direction).sum())
    z = x.clone().requires_grad_()
    torch.utils.checkpoint.checkpoint(layer, z, use_reentrant=False).backward(g)
    assert torch.equal(z.grad, y.grad)


def test_operator_counters_see_plain_operators():
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    with Recorder():
        nn.FilterResponseNormTLU2d(3)(torch.randn(2, 3, 4, 4))
    assert any("rsqrt" in name for name in seen)
    assert not any("batch_norm" in name for name in seen)


@pytest.mark.parametrize("dynamic", [None, True])
def test_constants_and_sizes_may_differ_in_one_compiled_network(dynamic):
    torch.compiler.reset()
    model = torch.nn.Sequential(
        nn.FilterResponseNormTLU2d(3, eps=0.5),
        nn.FilterResponseNormTLU2d(3),
        nn.FilterResponseNorm2d(3, eps=2),
    )
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for size in (3, 5, 4):
        x = draw(size, 3, size + 1, 4).float()
        torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["rows", "last"])
def test_gpu_agrees_with_cpu(layout):
    layer = nn.FilterResponseNormTLU2d(6, learn_eps=True, dtype=torch.float64)
    x, g = draw(4, 6, 9, 7).to(memory_format=layout), draw(4, 6, 9, 7, seed=4)
    results = []
    for device in ("cpu", "cuda"):
        twin, y = copy.deepcopy(layer).to(device), x.detach().to(device).requires_grad_()
        out = twin(y)
        out.backward(g.to(device))
        results.append([t.cpu() for t in (out, y.grad, *(p.grad for p in twin.parameters()))])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(other, one)


@pytest.mark.zoo
@pytest.mark.parametrize("activation", [True, False])
def test_agrees_with_timm(activation):
    from varshift.integrations import declare_torchvision_operators

    declare_torchvision_operators()
    from timm.layers.filter_response_norm import FilterResponseNormTlu2d

    peer = FilterResponseNormTlu2d(5, apply_act=activation).double()
    kind = nn.FilterResponseNormTLU2d if activation else nn.FilterResponseNorm2d
    ours = kind(5, eps=peer.eps, dtype=torch.float64)
    with torch.no_grad():
        for seed, parameter in enumerate(peer.parameters()):
            parameter.add_(0.3 * draw(5, seed=seed))
    ours.load_state_dict(peer.state_dict())
    x, y = draw(3, 5, 6, 7).requires_grad_(), draw(3, 5, 6, 7).requires_grad_()
    g = draw(3, 5, 6, 7, seed=9)
    # timm computes its statistics in float32 whatever the input
    close = {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(ours(x), peer(y), **close)
    ours(x).backward(g)
    peer(y).backward(g)
    torch.testing.assert_close(x.grad, y.grad, **close)
    for name, parameter in peer.named_parameters():
        torch.testing.assert_close(getattr(ours, name).grad, parameter.grad, rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------------- bad arguments


@pytest.mark.parametrize("kind", [nn.FilterResponseNorm2d, nn.FilterResponseNormTLU2d])
def test_bad_arguments(kind):
    with pytest.raises(ValueError, match="eps=-1"):
        kind(3, eps=-1)
    with pytest.raises(ValueError, match="num_features=0"):
        kind(0)
    with pytest.raises(ValueError, match="learned_eps_init=nan"):
        kind(3, learned_eps_init=float("nan"))
    with pytest.raises(ValueError, match=r"5 channels.*num_features=3"):
        kind(3)(torch.ones(2, 5, 4, 4))
    with pytest.raises(ValueError, match=r"takes \(B, C, H, W\), but the input is 3-D"):
        kind(3)(torch.ones(2, 3, 4))


def test_bad_arguments_of_the_functions():
    x = torch.ones(2, 3, 4)
    with pytest.raises(ValueError, match=r"weight has the shape \(4,\).*3 channels"):
        functional.filter_response_norm(x, torch.ones(4))
    with pytest.raises(ValueError, match="eps=-2"):
        functional.filter_response_norm(x, eps=-2)
    with pytest.raises(ValueError, match=r"x has the shape \(3,\)"):
        functional.filter_response_norm(torch.ones(3))
    with pytest.raises(ValueError, match=r"tau has the shape \(2,\)"):
        functional.thresholded_linear_unit(x, torch.ones(2))
