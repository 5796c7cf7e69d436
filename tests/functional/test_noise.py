"""The noise kernel: its bits, its probabilities, its derivatives, and the plain operators beside it."""

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from varshift.functional import dropout, gaussian_dropout, uniform_dropout
from varshift.functional._noise import (
    all_integers,
    odd_integers,
    random_bits,
    random_mask,
    random_normal,
    random_symmetric,
    scaled,
)

MANY = 1_000_000
NOISES = {
    "dropout": lambda x, **settings: dropout(x, 0.3, **settings),
    "uniform": lambda x, **settings: uniform_dropout(x, 0.6, **settings),
    "per_channel": lambda x, **settings: uniform_dropout(x, 0.6, per_channel=True, **settings),
    "gaussian": lambda x, **settings: gaussian_dropout(x, 0.6, **settings),
}
VARIANCES = {"dropout": 0.3 / 0.7, "uniform": 0.36 / 3, "per_channel": 0.36 / 3, "gaussian": 0.36}


@pytest.fixture(params=NOISES, name="name")
def noise_name(request):
    return request.param


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def within(sample, expected, std, sigmas=5.0):
    """Whether a sample's mean lies within so many standard errors of what is expected."""
    return abs(float(sample.double().mean()) - expected) <= sigmas * std / math.sqrt(sample.numel()) + 1e-12


# ---------------------------------------------------------------------- random bits


def test_each_piece_of_an_integer_is_uniform():
    bits = random_bits(torch.empty(4 * MANY), 16, generator())
    for piece in range(4):
        values = bits[piece::4].int()
        assert within(values, -0.5, 65536 / math.sqrt(12))
        for bit in range(16):  # the topmost is the sign, which random_() without bounds leaves at zero
            assert within(values.bitwise_right_shift(bit).bitwise_and(1), 0.5, 0.5)
        counts = torch.bincount((values + 32768) // 256, minlength=256).double()
        chi = float(((counts - MANY / 256) ** 2 / (MANY / 256)).sum())
        assert abs(chi - 255) < 5 * math.sqrt(2 * 255)


def test_pieces_of_an_integer_are_independent():
    values = random_bits(torch.empty(4 * MANY), 16, generator(1)).view(-1, 4).double()
    error = 5 / math.sqrt(MANY)
    assert (torch.corrcoef(values.T) - torch.eye(4, dtype=torch.float64)).abs().max() < error
    following = torch.stack([values[:-1, 3], values[1:, 0]])
    assert abs(float(torch.corrcoef(following)[0, 1])) < error


@pytest.mark.parametrize(("width", "dtype"), [(16, torch.int16), (32, torch.int32), (64, torch.int64)])
def test_bits_have_the_shape_and_layout_asked_for(width, dtype):
    x = torch.empty(3, 5, 2, 7).to(memory_format=torch.channels_last)
    bits = random_bits(x, width, generator())
    assert bits.dtype == dtype
    assert bits.shape == x.shape
    assert bits.stride() == x.stride()
    assert len(bits.unique()) > 0.98 * x.numel()


# ---------------------------------------------------------------------- probabilities and scales


@pytest.mark.parametrize("p", [0.5, 0.3, 0.05, 0.9, 2**-8, 0.003, 1e-4, 1 - 1e-4])
def test_a_mask_drops_with_the_probability_it_reports(p):
    mask, keep = random_mask(torch.empty(4 * MANY), p, generator(2))
    assert mask.dtype == torch.uint8
    assert within(mask, keep, math.sqrt(keep * (1 - keep)))


@settings(max_examples=200, deadline=None)
@given(p=st.floats(1e-18, 1, exclude_max=True))
def test_a_probability_is_never_rounded_away(p):
    _, keep = random_mask(torch.empty(1), p)
    assert abs((1 - keep) - p) <= 2**-17 * 1.01
    assert 0 < keep <= 1
    if p < 2**-8:
        drop = 1 - keep if p > 1e-12 else p  # below, a float has no room for 1 - p
        assert drop == pytest.approx(p, rel=2**-8)
    if p > 1 - 2**-8:
        assert keep == pytest.approx(1 - p, rel=2**-8)


def test_a_tiny_probability_still_drops():
    expected, samples = 1e-6, 20 * MANY
    mask, _ = random_mask(torch.empty(samples), expected, generator(3))
    dropped = int((mask == 0).sum())
    assert 0 < dropped <= expected * samples + 5 * math.sqrt(expected * samples)


def test_the_extremes_are_exact():
    x = torch.randn(1000)
    assert dropout(x, 0) is x
    assert not dropout(x, 1).any()
    assert uniform_dropout(x, 0) is x
    assert gaussian_dropout(x, 0) is x


@pytest.mark.parametrize("draw", [random_symmetric, odd_integers, all_integers])
def test_symmetric_noise_has_mean_zero_and_the_variance_of_the_uniform(draw):
    noise, unit = draw(torch.empty(4 * MANY), generator(4))
    assert noise.dtype == torch.int16
    noise = noise.double() * unit
    assert (noise.abs() <= 1).all()
    assert float(noise.max()) == -float(noise.min())  # both ends are met, and lie evenly around zero
    assert within(noise, 0, math.sqrt(1 / 3))
    assert within(noise**2, 1 / 3, math.sqrt(1 / 5 - 1 / 9))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_the_product_is_the_same_with_and_without_room(dtype):
    # A batch of gradients takes the way of a GPU, where the noise is not widened first.
    x, upstream = torch.randn(50, 40, dtype=dtype, requires_grad=True), torch.randn(50, 40, dtype=dtype)
    for noise, scale in ((random_symmetric(x)[0], 0.7 / 2**15), (random_normal(x), 0.7)):
        before = noise.clone()
        y = scaled(x, noise, scale, offset=True)
        assert torch.equal(noise, before)
        (one,) = torch.autograd.grad(y, x, upstream, retain_graph=True)
        (many,) = torch.autograd.grad(y, x, upstream[None], is_grads_batched=True)
        expected = upstream.double() * (1 + scale * noise.double())
        # The error of a sum of two terms, each no larger than this, in single precision at least.
        error = 4 * torch.finfo(dtype).eps * upstream.double().abs() * (1 + scale * noise.double().abs())
        for gradient in (one, many[0]):
            assert ((gradient.double() - expected).abs() <= error).all()


def test_normal_noise_has_the_moments_of_the_normal():
    noise = random_normal(torch.empty(4 * MANY), generator(5))
    assert noise.dtype == torch.float16
    noise = noise.double()
    for power, moment, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert within(noise**power, moment, math.sqrt(spread))
    for level, share in ((1, 0.15865525), (2, 0.02275013), (3, 0.00134990), (4, 3.167e-5)):
        assert within(noise > level, share, math.sqrt(share))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("plain", [False, True], ids=["kernel", "plain"])
def test_the_factor_has_mean_one_and_its_variance(name, dtype, plain):
    x = torch.ones(1000, 1000, dtype=dtype)
    torch.manual_seed(6)
    noise = NOISES[name]
    y = torch.vmap(noise, randomness="different")(x[None])[0] if plain else noise(x)
    assert y.dtype == dtype
    y, variance = y.double(), VARIANCES[name]
    rounding = torch.finfo(dtype).eps / 2  # of each product, at most
    assert abs(float(y.mean()) - 1) <= 5 * math.sqrt(variance / y.numel()) + rounding
    assert float(y.var()) == pytest.approx(variance, rel=0.02)


@settings(max_examples=30, deadline=None)
@given(
    shape=st.lists(st.integers(0, 5), min_size=0, max_size=5),
    kind=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64]),
)
def test_any_shape_and_type(shape, kind):
    x = torch.ones(shape, dtype=kind)
    for name, noise in NOISES.items():
        if name == "per_channel" and len(shape) < 2:
            continue
        y = noise(x)
        assert y.shape == x.shape
        assert y.dtype == kind


# ---------------------------------------------------------------------- reproducible


def test_a_generator_fixes_the_noise_and_the_global_one_is_left_alone(name):
    x = torch.randn(6, 5, 4)
    noise = NOISES[name]
    before = torch.get_rng_state()
    one, same = noise(x, generator=generator(3)), noise(x, generator=generator(3))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one, same)
    assert not torch.equal(one, noise(x, generator=generator(4)))
    stepping = generator(3)
    assert torch.equal(noise(x, generator=stepping), one)
    assert not torch.equal(noise(x, generator=stepping), one)


def test_checkpointing_replays_the_noise(name):
    x = torch.randn(6, 5, 4, requires_grad=True)
    torch.manual_seed(9)
    y = torch.utils.checkpoint.checkpoint(NOISES[name], x, use_reentrant=False)
    (grad,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(grad * x, y)  # the same factor in both passes


# ---------------------------------------------------------------------- derivatives


def repeated(noise):
    def run(x):
        torch.manual_seed(7)
        return noise(x)

    return run


def test_derivatives_of_any_order(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, on first use of forward mode
        torch.autograd.forward_ad._maybe_load_decompositions()
    x = torch.randn(3, 4, 2, dtype=torch.float64, requires_grad=True)
    run = repeated(NOISES[name])
    assert torch.autograd.gradcheck(run, x, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(run, x)


def test_function_transforms(name):
    x = torch.randn(3, 4, 2, dtype=torch.float64)
    noise = NOISES[name]
    slope = torch.func.vmap(torch.func.grad(lambda z: noise(z).sum()), randomness="different")(x[None])[0]
    assert slope.shape == x.shape
    assert len(slope.unique()) > 1
    same = torch.vmap(noise, randomness="same")(torch.ones(3, 4, 2))
    assert torch.equal(same[0], same[1])
    with pytest.raises(RuntimeError, match="randomness"):
        torch.vmap(noise)(x)


def test_what_waits_for_the_backward_pass():
    # Bytes per value beside the input, which nobody has to keep.
    for name, most in {"dropout": 1, "uniform": 2, "gaussian": 2}.items():
        x = torch.randn(64, 64, requires_grad=True)
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, lambda t: t):
            NOISES[name](x)
        assert sum(tensor.numel() * tensor.element_size() for tensor in kept) == most * x.numel()


# ---------------------------------------------------------------------- compilers and captures


class Noise(nn.Module):
    def __init__(self, name):
        super().__init__()
        self.name = name

    def forward(self, x):
        return NOISES[self.name](x)


RANDOM = {"dropout": "dropout", "uniform": "uniform_", "per_channel": "uniform_", "gaussian": "normal_"}


def test_an_exported_graph_shows_its_noise(name):
    program = torch.export.export(Noise(name), (torch.randn(2, 3, 4, 4),), strict=False)
    called = {
        node.target.__name__.split(".")[0] for node in program.graph.nodes if node.op == "call_function"
    }
    assert RANDOM[name] in called


def test_compiled_noise_has_the_same_distribution(name):
    torch.compiler.reset()
    compiled = torch.compile(NOISES[name], fullgraph=True, backend="aot_eager")
    y = compiled(torch.ones(300, 300)).double()
    variance = VARIANCES[name]
    assert abs(float(y.mean()) - 1) <= 5 * math.sqrt(variance / y.numel())
    assert float(y.var()) == pytest.approx(variance, rel=0.05)


def test_the_meta_device(name):
    assert NOISES[name](torch.empty(2, 3, 4, device="meta")).shape == (2, 3, 4)


class Marked(torch.Tensor):
    """A subclass, whose own meaning of operators must not be bypassed."""


def test_subclasses_of_tensors_keep_their_class(name):
    assert isinstance(NOISES[name](torch.ones(2, 3, 4).as_subclass(Marked)), Marked)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_noise_on_a_gpu(name, dtype):
    x = torch.ones(1000, 1000, device="cuda", dtype=dtype, requires_grad=True)
    y = NOISES[name](x)
    assert y.dtype == dtype
    (grad,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(grad, y.detach())
    y = y.detach().double()
    rounding = torch.finfo(dtype).eps / 2
    assert abs(float(y.mean()) - 1) <= 5 * math.sqrt(VARIANCES[name] / y.numel()) + rounding
    assert float(y.var()) == pytest.approx(VARIANCES[name], rel=0.02)
    seeds = [torch.Generator("cuda").manual_seed(seed) for seed in (3, 3, 4)]
    one, same, other = (NOISES[name](x.detach(), generator=seed) for seed in seeds)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    with torch.autocast("cuda", torch.bfloat16):
        NOISES[name](x).sum().backward()


# ---------------------------------------------------------------------- arguments


def test_evaluation_returns_the_input_itself(name):
    x = torch.randn(2, 3)
    assert NOISES[name](x, training=False) is x


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: dropout(torch.ones(3), -0.1), "p=-0.1"),
        (lambda: dropout(torch.ones(3), 1.1, training=False), "p=1.1"),
        (lambda: dropout(torch.ones(3, dtype=torch.int64), 0.1), "torch.int64"),
        (lambda: uniform_dropout(torch.ones(3), 1.5), "beta=1.5"),
        (lambda: uniform_dropout(torch.ones(3), 0.5, per_channel=True), r"\(3,\)"),
        (lambda: gaussian_dropout(torch.ones(3), -1), "sigma=-1"),
        (lambda: gaussian_dropout(torch.ones(3), math.inf), "sigma=inf"),
    ],
)
def test_bad_arguments_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
